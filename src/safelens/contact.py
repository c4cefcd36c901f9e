"""The contact sheet: a clip's frames side by side, with their times and the evidence outlined.

Knows pictures and times. Knows nothing of verdicts beyond their evidence and regions, and nothing of pages.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from safelens.verdict import Evidence, Region
    from safelens.video import Clip

MAX_SHOWN = 48
"""A clip with more frames is thinned out evenly, to keep a sheet readable."""

_ROW = 8
_WIDTH = 1152
_GAP = 8
_OUTLINE = 5
_LARGEST = 288
_BACKGROUND = (22, 24, 29)
_BADGE = (12, 13, 16)
_INK = (250, 250, 250)
_RED = (214, 40, 46)
_YELLOW = (255, 204, 0)


def evidence_frames(timestamps: np.ndarray, evidence: Sequence[Evidence]) -> np.ndarray:
    """Which frames the evidence speaks of.

    A stretch ends where the next moment begins, so a frame exactly at its end is not part of it,
    unless it is the clip's last. A stretch between two frames marks the nearer one.

    Args:
        timestamps: (T,) seconds, never falling.
        evidence: stretches in the same seconds.

    Returns:
        bool (T,).
    """
    times = np.asarray(timestamps, np.float64)
    marked = np.zeros(len(times), bool)
    for part in evidence:
        inside = (times >= part.start_s) & (times < part.end_s)
        inside |= (times == times[-1]) & (part.start_s <= times[-1] <= part.end_s)
        if not inside.any():
            inside[np.abs(times - (part.start_s + part.end_s) / 2).argmin()] = True
        marked |= inside
    return marked


def shown_frames(count: int) -> np.ndarray:
    """Indices of the frames that a sheet shows: all, or `MAX_SHOWN` spread evenly; int (n,)."""
    return np.linspace(0, count - 1, min(count, MAX_SHOWN)).round().astype(int)


def grid(count: int) -> tuple[int, int]:
    """Columns and rows for a number of frames: even rows of at most eight, sixteen for many."""
    longest = _ROW if count <= 3 * _ROW else 2 * _ROW
    rows = math.ceil(count / longest)
    return math.ceil(count / rows), rows


def contact_sheet(
    clip: Clip,
    evidence: Sequence[Evidence] = (),
    regions: Sequence[Region] = (),
    *,
    quality: int = 82,
) -> bytes:
    """Draw a clip's frames in a grid, each with its time; frames with evidence are outlined in red.

    Where a category looked is a thin yellow box with the category's id in the frames of its stretch.

    Args:
        clip: at least one frame.
        evidence: stretches of the clip's time.
        regions: boxes within the frames of such stretches.
        quality: of the JPEG, 1 to 95.

    Returns:
        A JPEG file of at most 1152 pixels' width.

    Raises:
        ValueError: the clip holds no frame.
    """
    if len(clip.frames) == 0:
        raise ValueError(f"{clip.path}: a clip without frames; expected at least one")
    shown = shown_frames(len(clip.frames))
    times = clip.timestamps[shown]
    marked = evidence_frames(times, evidence)
    boxes = [(region, evidence_frames(times, [region])) for region in regions]
    columns, rows = grid(len(shown))
    height, width = clip.frames.shape[1:3]
    # Frames fill the sheet's width, but are not blown up far beyond what was decoded.
    cell = min(_LARGEST, (_WIDTH - _GAP) // columns - _GAP)
    scale = cell / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # A very flat frame still gets the room that its time needs.
    step = max(size[0], 60) + _GAP, max(size[1], 28) + _GAP
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(max(12, min(16, cell // 11)))
    small = ImageFont.load_default(11)
    for place, index in enumerate(shown):
        x = _GAP + place % columns * step[0]
        y = _GAP + place // columns * step[1]
        frame = Image.fromarray(clip.frames[index]).resize(size, Image.Resampling.LANCZOS)
        box = (x, y, x + step[0] - _GAP, y + step[1] - _GAP)
        corner = x + (box[2] - x - size[0]) // 2, y + (box[3] - y - size[1]) // 2
        sheet.paste(frame, corner)
        for region, frames in boxes:
            if frames[place]:
                _region(draw, region, corner, size, small)
        _label(draw, box, f"{times[place]:.1f} s", font, red=bool(marked[place]))
    out = io.BytesIO()
    # 4:4:4 keeps the thin red outline from bleeding.
    sheet.save(out, "JPEG", quality=quality, subsampling=0, optimize=True)
    return out.getvalue()


def _region(
    draw: ImageDraw.ImageDraw,
    region: Region,
    corner: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, right = (corner[0] + round(share * size[0]) for share in (region.left, region.right))
    top, bottom = (corner[1] + round(share * size[1]) for share in (region.top, region.bottom))
    draw.rectangle(
        (left, top, max(left, right - 1), max(top, bottom - 1)), outline=_YELLOW, width=2
    )
    wide, high = draw.textbbox((0, 0), region.category, font=font)[2:]
    draw.rectangle((left, top, left + wide + 5, top + high + 3), fill=_YELLOW)
    draw.text((left + 3, top + 1), region.category, fill=_BADGE, font=font)


def _label(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    red: bool,
) -> None:
    left, top, right, bottom = box
    if red:
        half = _OUTLINE // 2
        around = (left - half, top - half, right + half, bottom + half)
        draw.rectangle(around, outline=_RED, width=_OUTLINE)
        text += "  !"
    wide, high = draw.textbbox((0, 0), text, font=font)[2:]
    draw.rectangle(
        (left, bottom - high - 6, left + wide + 12, bottom), fill=_RED if red else _BADGE
    )
    draw.text((left + 6, bottom - high - 4), text, fill=_INK, font=font)


def data_url(jpeg: bytes) -> str:
    """A JPEG as a `data:` address, to be embedded in a page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
