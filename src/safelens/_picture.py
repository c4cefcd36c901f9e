"""Decoded pictures to upright RGB arrays of one size.

Knows pixel formats, colour, alpha, pixel shape and orientation; knows nothing of time or files.
Runs in the decoding process only.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Transparent areas become mid grey: text in black and in white both stay legible on it.
BACKDROP = 128
_PQ, _HLG = 16, 18
_WHITE_NITS = 203.0
_PEAK = 1000.0 / _WHITE_NITS
# Linear BT.2020 to linear BT.709 (ITU-R BT.2087).
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def fit(size: tuple[int, int], shape: Fraction | None, max_side: int) -> tuple[int, int]:
    """Return the (width, height) that shows `size` with square pixels within `max_side`.

    Args:
        size: stored width and height.
        shape: width of a pixel over its height; None or nonsense counts as 1.
        max_side: longest side allowed. Neither side ever grows.
    """
    width, height = float(size[0]), float(size[1])
    if shape and Fraction(1, 10) <= shape <= 10:
        if shape > 1:
            height /= float(shape)
        else:
            width *= float(shape)
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return how to make a frame upright: (transpose, then mirror left-right, then up-down).

    Read from the 3x3 display matrix (ISO 14496-12): x' = a x + c y, y' = b x + d y. Arbitrary angles
    are taken to the nearest right angle.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 gives up on side data it has no name for; the angle it still knows
        quarter = round(frame.rotation / 90) % 4
        return [
            (False, False, False),
            (True, False, True),
            (False, True, True),
            (True, True, False),
        ][quarter]
    if data is None:
        return False, False, False
    matrix = np.frombuffer(cast(Any, data), np.int32)
    if matrix.size < 9:
        return False, False, False
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def turn(picture: np.ndarray, how: tuple[bool, bool, bool]) -> np.ndarray:
    """Apply an `orientation` to an (H, W, 3) array."""
    transpose, left_right, up_down = how
    if transpose:
        picture = picture.transpose(1, 0, 2)
    if left_right:
        picture = picture[:, ::-1]
    if up_down:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def flatten(picture: np.ndarray) -> np.ndarray:
    """Lay an RGBA picture (H, W, 4) over the backdrop; returns uint8 (H, W, 3)."""
    alpha = picture[..., 3:].astype(np.uint16)
    mixed = picture[..., :3].astype(np.uint16) * alpha + BACKDROP * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def standard_range(picture: np.ndarray, *, hlg: bool) -> np.ndarray:
    """Bring an HDR picture into the range that models and browsers expect.

    The transfer functions of ITU-R BT.2100 (PQ, or HLG with its system gamma for 1000 nits), reference
    white at 203 nits (BT.2408), BT.2020 to BT.709 primaries, the extended Reinhard curve
    x (1 + x / p^2) / (1 + x) up to p = 1000 nits, scaled so that white stays bright, and the sRGB curve.

    Args:
        picture: uint16 (H, W, 3), full range.
        hlg: HLG rather than PQ.

    Returns:
        uint8 (H, W, 3).
    """
    signal = picture.astype(np.float32) / 65535
    if hlg:
        scene = np.where(
            signal <= 0.5,
            signal**2 / 3,
            (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12,
        )
        luma = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = scene * np.maximum(luma, 1e-6)[..., None] ** 0.2 * _PEAK
    else:
        power = signal ** (1 / 78.84375)
        ratio = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        light = ratio ** (1 / 0.1593017578125) * (10000 / _WHITE_NITS)
    light = np.clip(light @ _TO_709.T, 0, _PEAK)
    shown = np.clip(1.6 * light * (1 + light / _PEAK**2) / (1 + light), 0, 1)
    curve = np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)
    return np.round(255 * curve).astype(np.uint8)


class Converter:
    """Turns the frames of one video into upright RGB arrays that all have one size."""

    def __init__(self, max_side: int, shape: Fraction | None) -> None:
        self.max_side = max_side
        self.shape = shape
        self.size: tuple[int, int] | None = None
        """(width, height) of every array, set by the first frame."""
        self.source_size: tuple[int, int] | None = None
        self.notes: set[str] = set()
        self._scaler = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return one frame as uint8 (H, W, 3)."""
        how = orientation(frame)
        source = (frame.height, frame.width) if how[0] else (frame.width, frame.height)
        if self.size is None:
            size = fit((frame.width, frame.height), self.shape, self.max_side)
            self.size = (size[1], size[0]) if how[0] else size
            self.source_size = source
        elif source != self.source_size:
            self.notes.add("the picture size changes within the video")
        width, height = (self.size[1], self.size[0]) if how[0] else self.size
        alpha = any(component.is_alpha for component in frame.format.components)
        hdr = frame.color_trc in (_PQ, _HLG)
        pixels = "rgba" if alpha else "rgb48le" if hdr else "rgb24"
        scaled = self._scaler.reformat(frame, width, height, pixels, interpolation="AREA")
        picture = scaled.to_ndarray()
        if alpha:
            picture = flatten(picture)
        elif hdr:
            self.notes.add("HDR, shown in standard range")
            picture = standard_range(picture, hlg=frame.color_trc == _HLG)
        return turn(picture, how)
