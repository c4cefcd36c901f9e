"""How a video looks in 256 bits a frame, and which videos look nearly the same.

Knows pictures as arrays. Knows nothing of records or of what is done about a likeness.

A frame's fingerprint is the DCT hash that PDQ made usual: brightness only, 32 x 32 pixels, the 16 x 16
lowest frequencies without the constant one, each a bit: above the median or not. Re-encoding, scaling,
greying, black bars and a small logo leave most bits; mirroring, rotating, heavy cropping and cutting
in time do not. Videos are compared at the same eight relative moments, so a cut copy is not found.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from safelens.video import Clip, ClipOptions

FRAMES = 8
"""Moments of a video that are compared, evenly spaced, both ends included."""

CLIP_OPTIONS = ClipOptions(min_frames=FRAMES, max_frames=FRAMES, max_side=128)
"""How a video is decoded for its fingerprint."""

NEAR_BITS = 31.0
"""Videos whose frames differ in at most this many of 256 bits on average look nearly the same.

PDQ's own tolerance. Chance is 128. Measured: copies with a logo, or greyed, barred and smaller, 21 and
28; other moments of one fixed camera from 24 on (they are the same scene, and worth a report too);
the nearest two of 414 SafeWorld clips that are not twins, 41; other videos of people before
one wall, 67.
"""

_SIDE, _LOW = 32, 16
_DARK = 32
_FLAT = 2.0
_BLOCK = 1024
_DCT = np.cos(np.pi * np.outer(np.arange(1, _LOW + 1), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A video's looks.

    Attributes:
        signs: int8 (FRAMES, 256), +1 or -1; all 0 in a frame that shows nothing.
    """

    signs: np.ndarray


def fingerprint(clip: Clip) -> Fingerprint:
    """The looks of a clip of FRAMES frames, bars around the picture left out."""
    frames = _without_bars(clip.frames)
    return Fingerprint(np.stack([_signs(frame) for frame in frames]))


def near_pairs(prints: list[Fingerprint]) -> Iterator[tuple[int, int, float]]:
    """Pairs of videos that look nearly the same.

    Frames that show nothing in either video do not count; a pair with fewer than half of its
    frames left is not compared. Time and work grow with the square of the number of videos.

    Args:
        prints: of the videos.

    Yields:
        i < j, and the mean number of differing bits a frame.
    """
    if not prints:
        return
    signs = np.stack([p.signs for p in prints])
    seen = (signs[:, :, 0] != 0).astype(np.float32)
    flat = signs.reshape(len(prints), -1)
    for start in range(0, len(prints), _BLOCK):
        rows = flat[start : start + _BLOCK].astype(np.float32)
        for other in range(start, len(prints), _BLOCK):
            # agreeing minus differing bits of the frames that both show
            balance = rows @ flat[other : other + _BLOCK].astype(np.float32).T
            frames = seen[start : start + _BLOCK] @ seen[other : other + _BLOCK].T
            bits = signs.shape[2]
            distance = (bits - balance / np.maximum(frames, 1)) / 2
            near = (distance <= NEAR_BITS) & (frames >= FRAMES / 2)
            for i, j in zip(*np.nonzero(near), strict=True):
                if start + i < other + j:
                    yield int(start + i), int(other + j), float(distance[i, j])


def _signs(frame: np.ndarray) -> np.ndarray:
    small = Image.fromarray(frame).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    light = np.asarray(small, np.float64)
    # Without rows' and columns' means: shades from edge to edge are in none of the waves below.
    rest = light - light.mean(0) - light.mean(1, keepdims=True) + light.mean()
    if rest.std() < _FLAT:
        return np.zeros(_LOW * _LOW, np.int8)
    waves = _DCT @ light @ _DCT.T
    return np.where(waves > np.median(waves), 1, -1).astype(np.int8).ravel()


def _without_bars(frames: np.ndarray) -> np.ndarray:
    """Frames without rows and columns at the edges that stay black throughout."""
    brightest = frames.max(axis=(0, 3)) > _DARK
    rows = np.flatnonzero(brightest.mean(axis=1) > 0.05)
    columns = np.flatnonzero(brightest.mean(axis=0) > 0.05)
    if len(rows) == 0 or len(columns) == 0:
        return frames
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    # What is mostly black is a dark scene, not a picture between bars.
    if (bottom - top) * 4 < frames.shape[1] or (right - left) * 4 < frames.shape[2]:
        return frames
    return frames[:, top:bottom, left:right]
