"""Animated and still WebP, which the bundled FFmpeg does not animate: read with Pillow.

Knows the RIFF layout of WebP as far as needed to time frames without decoding them and to save what is
whole in a file that was cut. Runs in the decoding process only.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from safelens._opening import DecodeError, check_pixels
from safelens._picture import fit, flatten
from safelens.video import ClipOptions, sample_times

# ClipOptions.max_pixels is the rule here.
Image.MAX_IMAGE_PIXELS = None


@dataclass
class WebpFrames:
    """What a WebP file gave."""

    picks: list[tuple[float, np.ndarray]]
    duration_s: float | None
    source_size: tuple[int, int]
    truncated: bool
    notes: list[str]


def is_webp(path: str) -> bool:
    """Tell by content whether a file is WebP."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _whole_chunks(data: bytes) -> tuple[bytes, list[float], bool]:
    """Return the file without its incomplete end, each frame's duration (s), and whether it was cut.

    A WebP file is `RIFF size WEBP` and chunks `name size payload`, padded to even size; the payload
    of ANMF holds x, y, width - 1, height - 1 and duration in ms, three bytes each, little-endian.
    """
    at, durations = 12, []
    declared = struct.unpack_from("<I", data, 4)[0] + 8
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        following = at + 8 + size + (size & 1)
        if at + 8 + size > len(data):
            break
        if name == b"ANMF" and size >= 16:
            durations.append(int.from_bytes(data[at + 20 : at + 23], "little") / 1000)
        at = following
    at = min(at, len(data))
    return b"RIFF" + struct.pack("<I", at - 8) + data[8:at], durations, declared > len(data) + 1


def decode_webp(path: str, options: ClipOptions) -> WebpFrames:
    """Return the sampled frames of a WebP file.

    Raises:
        DecodeError: `unreadable`, `too_large` or `no_frames`.
    """
    with open(path, "rb") as file:
        data = file.read(options.max_memory_mb * (1 << 20) // 4)
    data, durations, cut = _whole_chunks(data)
    starts = np.concatenate([[0.0], np.cumsum(durations)[:-1]]) if durations else np.zeros(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError) as error:
        raise DecodeError(
            "unreadable",
            f"begins like a WebP file but is damaged ({error}); fetch or export it again",
        ) from None
    check_pixels(*image.size, options.max_pixels)
    size = fit(image.size, None, options.max_side)
    wanted = sorted(
        {int(np.abs(starts - t).argmin()) for t in sample_times(float(starts[-1]), options)}
    )
    picks: list[tuple[float, np.ndarray]] = []
    failed = 0
    for k in wanted:
        try:
            image.seek(k)
            picture = image.convert("RGBA")
        except (OSError, EOFError, ValueError):
            failed += 1
            continue
        if size != image.size:
            picture = picture.resize(size, Image.Resampling.BOX)
        picks.append((float(starts[k]), flatten(np.asarray(picture))))
    if not picks:
        raise DecodeError("no_frames", "is a WebP file of which no frame decodes; export it again")
    notes = []
    total = float(starts[-1] + durations[-1]) if durations else None
    if cut or failed:
        notes.append(f"truncated: {len(durations) or 1} whole frame(s) found, {failed} failed")
    return WebpFrames(picks, total, image.size, cut or bool(failed), notes)
