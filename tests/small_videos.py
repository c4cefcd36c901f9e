"""Small videos whose pixels say which frame they are, and ways to damage them."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 12
WIDTH, HEIGHT = 16 * BITS, 48


def bars(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture that spells `index` in black and white bars."""
    bits = [(index >> k) & 1 for k in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, width // BITS)
    return np.broadcast_to(row[None, :, None], (height, len(row), 3)).copy()


def spelled(frame: np.ndarray) -> int:
    levels = [bar[..., :].mean() for bar in np.array_split(frame, BITS, axis=1)]
    return sum(1 << k for k, level in enumerate(levels) if level > 127)


def write(
    path: Path,
    times_ms: list[int],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    picture=bars,
    container_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    prepare=None,
) -> Path:
    """Encode one picture per time; frame i spells i and is shown at times_ms[i]."""
    if options is None:
        options = {"preset": "ultrafast", "bf": "2"} if codec == "libx264" else {}
    with av.open(str(path), "w", container_options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=1000 if codec == "libx264" else 10, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        steps = {"mjpeg": Fraction(1, 10), "mpeg4": Fraction(1, 10), "mpeg2video": Fraction(1, 25)}
        if codec in steps:
            stream.codec_context.framerate = 1 / steps[codec]
            stream.codec_context.time_base = steps[codec]
        stream.gop_size = gop
        if prepare:
            prepare(stream)
        for index, at in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), "rgb24").reformat(
                format=pix_fmt
            )
            frame.time_base = Fraction(1, 1000)
            frame.pts = at
            if codec in steps:
                frame.time_base, frame.pts = steps[codec], round(at / 1000 / steps[codec])
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def steady(seconds: float, step_ms: int = 100, start_ms: int = 0) -> list[int]:
    return [start_ms + k * step_ms for k in range(round(seconds * 1000 / step_ms))]


FORMATS = {
    "b-frames.mp4": {},
    "long-gop.mkv": {"gop": 250},
    "intra.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "live.webm": {
        "codec": "libvpx-vp9",
        "options": {"deadline": "realtime", "cpu-used": "8"},
        "container_options": {"live": "1"},
    },
    "stream.ts": {},
    "program.mpg": {"codec": "mpeg2video"},
    "flash.flv": {},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
}


def cut(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def noise(index: int, width: int, height: int) -> np.ndarray:
    """Bars over noise, so that every frame has about the same size in the file."""
    picture = bars(index, width, height).astype(int)
    grain = np.random.default_rng(index).integers(-60, 60, (height, width, 3))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def claim(path: Path, seconds: float, claimed_s: float) -> Path:
    """Make a Matroska file of so many seconds declare another duration, below an hour."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    (declared_ms,) = struct.unpack_from(">d", data, at)
    assert abs(declared_ms - 1000 * seconds) < 200
    struct.pack_into(">d", data, at, claimed_s * 1000)
    at = data.index(b"DURATION")  # the muxer's tag says it once more
    at = data.index(b"00:00:", at)
    data[at : at + 12] = f"00:{int(claimed_s) // 60:02}:{claimed_s % 60:06.3f}".encode()
    path.write_bytes(data)
    return path
