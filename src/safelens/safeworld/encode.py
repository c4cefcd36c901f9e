"""Scenes to video files: which format a clip has, and how its frames are encoded.

Knows codecs, containers and frame sizes. Knows nothing of labels, records or folders. A clip's
format depends on (seed, index) alone, so a twin has the format of its original, and the same seed
writes the same bytes with the same FFmpeg.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import av
import numpy as np
from PIL import Image

from safelens.safeworld.scene import Scene

_USUAL_SHARE = 0.92
_X264 = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
# With mbtree, x264 of FFmpeg 8.1 writes other bytes run by run at 192x256 and 480x480.


@dataclass(frozen=True)
class Format:
    """How a clip is stored.

    Attributes:
        name: short name, for counts.
        suffix: of the file, with its dot.
        container: FFmpeg's muxer.
        codec: FFmpeg's encoder, or `pillow` for an animation with one palette a frame.
        pixels: the encoder's pixel format.
        size: width and height in pixels; a scene is square and centred on black.
        fps: frames per second; None for the scene's own.
        options: the encoder's options.
    """

    name: str
    suffix: str = ".mp4"
    container: str = "mp4"
    codec: str = "libx264"
    pixels: str = "yuv420p"
    size: tuple[int, int] = (256, 256)
    fps: int | None = None
    options: dict[str, str] = field(default_factory=lambda: dict(_X264))


USUAL = Format("h264")
"""What about 92 in 100 clips are."""

_VPX = {"deadline": "realtime", "cpu-used": "8", "b": "900k"}
UNUSUAL = (
    Format("mpeg4", ".avi", "avi", "mpeg4", options={"qscale": "3", "b": "1500k"}),
    Format("vp9", ".webm", "webm", "libvpx-vp9", options=_VPX),
    # A positive cpu-used lets VP8 choose its speed by the clock, and so its bytes by the machine's load.
    Format("vp8", ".webm", "webm", "libvpx", options=_VPX | {"cpu-used": "-8"}),
    Format("mjpeg", ".mov", "mov", "mjpeg", "yuvj420p", options={"qmin": "3", "qmax": "3"}),
    Format("gif", ".gif", "gif", "pillow", "pal8", options={}, fps=10),
    Format("320x240", size=(320, 240)),
    Format("192x256", size=(192, 256)),
    Format("480x480", size=(480, 480)),
    Format("6fps", fps=6),
    Format("24fps", fps=24),
)
"""What the others are, each as often."""


def format_of(seed: int, index: int) -> Format:
    """The format of a data set's clip, fixed by seed and index."""
    draw = random.Random(f"format/{seed}/{index}")
    return USUAL if draw.random() < _USUAL_SHARE else draw.choice(UNUSUAL)


def frame_times(scene: Scene, format: Format) -> np.ndarray:
    """Presentation times of a clip's frames: float64 (T,) seconds from 0, evenly spaced."""
    fps = float(format.fps or scene.fps)
    return np.arange(max(2, round(scene.duration_s * fps))) / fps


def encode(scene: Scene, format: Format, path: str | os.PathLike[str]) -> None:
    """Draws a scene and writes it; the file appears under its name only when complete.

    Args:
        scene: what to draw.
        format: how to store it.
        path: where; its folder exists.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        if format.codec == "pillow":
            _write_gif(scene, format, part)
        else:
            _write_video(scene, format, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_complete(path: str | os.PathLike[str], scene: Scene, format: Format) -> bool:
    """Whether a file holds this scene's number of frames at this format's size.

    It reads the container, not the pictures: about a millisecond. Content is not compared.
    """
    path = Path(path)
    if not path.is_file():
        return False
    times = frame_times(scene, format)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if (stream.width, stream.height) != format.size:
                return False
            packets = [p for p in container.demux(stream) if p.size and p.pts is not None]
            if format.codec != "pillow":
                return len(packets) == len(times)
            # Equal neighbours are one picture in a GIF, shown longer.
            last = packets[-1]
            end = (last.pts or 0) + (last.duration or 0)
            return bool(
                abs(float(end * (stream.time_base or 0)) - len(times) / (format.fps or 1)) < 0.05
            )
    except (av.FFmpegError, IndexError, TypeError):
        return False


def _frames(scene: Scene, format: Format) -> Iterator[np.ndarray]:
    width, height = format.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    for t in frame_times(scene, format):
        picture = scene.render(float(t), side)
        if width != height:
            canvas = np.zeros((height, width, 3), np.uint8)
            canvas[top : top + side, left : left + side] = picture
            picture = canvas
        yield picture


def _write_video(scene: Scene, format: Format, part: Path) -> None:
    # bitexact: no random ids or dates in the file. One thread: the caller runs several processes.
    with av.open(
        str(part), "w", format=format.container, container_options={"fflags": "+bitexact"}
    ) as container:
        fps = format.fps or scene.fps
        added = container.add_stream(format.codec, rate=int(fps), options=dict(format.options))
        stream = cast(av.VideoStream, added)
        stream.width, stream.height = format.size
        stream.pix_fmt = format.pixels
        stream.codec_context.thread_count = 1
        for picture in _frames(scene, format):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _write_gif(scene: Scene, format: Format, part: Path) -> None:
    pictures = [Image.fromarray(frame).quantize(128) for frame in _frames(scene, format)]
    pictures[0].save(
        part,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / (format.fps or 10)),
        loop=0,
    )
