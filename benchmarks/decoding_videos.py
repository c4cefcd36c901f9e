"""Videos to decode: their length, size, container and distance of keyframes, made without a download.

Knows what the files are and how their pictures are made. Knows nothing of who decodes them.

A camera pans over a texture whose spectrum falls with frequency as that of natural pictures does (1/f),
patches of another texture cross it, and the light changes slowly: free of noise, yet every block of every
frame has detail that moves and a remainder to be coded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import numpy as np

_MARGIN = 256
"""Pixels by which the texture is larger than the picture on each axis: how far the camera goes."""
_PATCHES = 8
_FALL = 1.4
"""Power of the frequency with which amplitudes fall: photographs have 1 to 1.5."""


@dataclass(frozen=True)
class Video:
    """A file to decode.

    Attributes:
        name: of the file; its suffix chooses the container.
        seconds: how long it is.
        size: width and height in pixels, both even.
        fps: frames per second.
        gop: frames from one keyframe to the next.
        shift_s: a bound on the distance of keyframes that is wide enough for this file, in seconds: half of
            that between keyframes and a little, or all of it for the last time wanted.
    """

    name: str
    seconds: int
    size: tuple[int, int]
    fps: int
    gop: int
    shift_s: float


VIDEOS = (
    Video("720p-gop250.mp4", 60, (1280, 720), 30, 250, 4.5),
    Video("720p-gop48.mp4", 60, (1280, 720), 24, 48, 2.0),
    Video("480p-gop60.mp4", 300, (854, 480), 30, 60, 2.0),
    Video("720p-gop60.ts", 30, (1280, 720), 30, 60, 2.0),
    Video("1080p-gop30.mp4", 60, (1920, 1080), 30, 30, 1.0),
)


def make(video: Video, folder: Path, *, threads: int) -> Path:
    """Write a video, or leave one that is there; the file appears under its name when complete."""
    path = folder / video.name
    if path.exists():
        return path
    part = folder / f"part-{video.name}"
    width, height = video.size
    options = {"preset": "veryfast", "crf": "23", "x264-params": "scenecut=0"}
    with av.open(str(part), "w") as out:
        stream = cast(av.VideoStream, out.add_stream("libx264", rate=video.fps, options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = video.gop
        stream.codec_context.thread_count = threads
        camera = Camera(video.size)
        for index in range(video.seconds * video.fps):
            picture = camera.picture(index / video.fps)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "yuv420p")))
        out.mux(stream.encode(None))
    os.replace(part, path)
    return path


class Camera:
    """Pictures of a moving scene at any time; the same size gives the same pictures."""

    def __init__(self, size: tuple[int, int]) -> None:
        draw = np.random.default_rng(7)
        self.size = size
        self._ground = texture(size[0] + _MARGIN + 2, size[1] + _MARGIN + 2, draw)
        self._patches = texture(size[0], size[1], draw)
        self._paths = draw.uniform((0, 0, 0.1, 0.1), (6.3, 6.3, 0.7, 0.7), (_PATCHES, 4))

    def picture(self, t: float) -> np.ndarray:
        """The picture at `t` seconds: uint8 (1.5 * height, width), planes of YUV 4:2:0."""
        width, height = self.size
        luma = self._seen(0.5 + 0.5 * np.sin(0.31 * t), 0.5 + 0.5 * np.sin(0.23 * t + 1))
        side = _even(height / 5)
        for k, (a, b, u, v) in enumerate(self._paths):
            left = _even((width - side) * (0.5 + 0.5 * np.sin(u * t + a)))
            top = _even((height - side) * (0.5 + 0.5 * np.sin(v * t + b)))
            at = k * side // 2
            luma[top : top + side, left : left + side] = self._patches[:side, at : at + side]
        light = 1 + 0.15 * np.sin(0.9 * t)
        luma = np.clip(light * np.arange(256), 16, 235).astype(np.uint8)[luma]
        # Colour follows brightness, weakly; its planes, one after the other, fill half the height.
        small = luma[::2, ::2] // 4
        chroma = np.concatenate([96 + small, 160 - small])
        return np.concatenate([luma, chroma.reshape(height // 2, width)])

    def _seen(self, across: float, down: float) -> np.ndarray:
        """The ground at a place given as shares of the margin, between pixels too: uint8 (height, width)."""
        width, height = self.size
        (x, u), (y, v) = (divmod(round(8 * _MARGIN * share), 8) for share in (across, down))
        ground = self._ground[y : y + height + 1, x : x + width + 1].astype(np.uint16)
        rows = (8 - v) * ground[:-1] + v * ground[1:]
        return (((8 - u) * rows[:, :-1] + u * rows[:, 1:] + 32) >> 6).astype(np.uint8)


def texture(width: int, height: int, draw: np.random.Generator) -> np.ndarray:
    """A random picture with amplitudes of 1/f: uint8 (height, width)."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(down, across), 1 / max(width, height))
    phases = draw.uniform(0, 2 * np.pi, frequency.shape)
    picture = np.fft.irfft2(np.exp(1j * phases) / frequency**_FALL, s=(height, width))
    return np.clip(126 + 45 * picture / picture.std(), 16, 235).astype(np.uint8)


def _even(value: float) -> int:
    return int(value) // 2 * 2
