"""A picture of a data set: a row of sample videos a class.

Knows how samples are chosen and laid out. Knows nothing of forms of data sets.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from safelens.data.records import Record
from safelens.data.stats import UNDECIDED, classes_of
from safelens.policy import Policy
from safelens.video import ClipOptions, VideoError, VideoReader

COLUMNS = 8
"""Samples of a class."""

_CELL, _TEXT, _GAP, _MARGIN = 160, 32, 8, 120
_INK, _PAPER, _GREY = (34, 34, 34), (250, 250, 248), (120, 120, 120)
_BLOCKED, _SAFE, _UNKNOWN = (196, 60, 50), (50, 130, 80), (120, 120, 120)
_OPTIONS = ClipOptions(min_frames=9, max_frames=9, max_side=256)


def choose(records: Sequence[Record], policy: Policy) -> dict[str, list[Record]]:
    """Up to COLUMNS records of each class, spread evenly over the data set; classes in policy order."""
    chosen = {}
    for label in (*policy.labels, UNDECIDED):
        members = [record for record in records if label in classes_of(record)]
        if members:
            places = (
                np.linspace(0, len(members) - 1, min(COLUMNS, len(members))).round().astype(int)
            )
            chosen[label] = [members[place] for place in places]
    return chosen


def write_samples(
    path: str | os.PathLike[str],
    rows: dict[str, list[Record]],
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Draw samples as PNG: of each video one frame, with its labels and its id.

    The frame is from the middle of the violation where that is known, else of the video.

    A video that cannot be read gets a grey cell that says why.

    Args:
        path: the file; missing parent folders are made.
        rows: class to its samples, as `choose` gives them.
        on_progress: called after every video with how many are done.

    Returns:
        How many samples could not be read.
    """
    step_x, step_y = _CELL + _GAP, _CELL + _TEXT + _GAP
    size = (_MARGIN + COLUMNS * step_x, max(1, len(rows)) * step_y + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(10)
    done = unread = 0
    with VideoReader(_OPTIONS) as reader:
        for row, (label, records) in enumerate(rows.items()):
            y = _GAP + row * step_y
            pen.text(
                (_GAP, y + _CELL // 2 - 7), _fitted(label, font, _MARGIN - 2 * _GAP), _INK, font
            )
            for column, record in enumerate(records):
                x = _MARGIN + column * step_x
                try:
                    clip = reader.read(record.video)
                    start, end = record.interval or (0.0, clip.timestamps[-1])
                    shown = int(np.abs(clip.timestamps - (start + end) / 2).argmin())
                    _paste(sheet, clip.frames[shown], x, y)
                except VideoError as error:
                    unread += 1
                    pen.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=(228, 228, 226))
                    pen.text((x + 6, y + _CELL // 2), error.code, _GREY, font=small)
                colour = _colour(record)
                pen.rectangle((x, y + _CELL, x + _CELL - 1, y + _CELL + 2), fill=colour)
                words = " + ".join(classes_of(record))
                pen.text((x, y + _CELL + 4), _fitted(words, small, _CELL), colour, font=small)
                # The end of an id tells records apart.
                name = _fitted(record.id[::-1], small, _CELL)[::-1]
                pen.text((x, y + _CELL + 17), name, _INK, font=small)
                done += 1
                if on_progress is not None:
                    on_progress(done)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    sheet.save(part, format="PNG")
    os.replace(part, path)
    return unread


def _paste(sheet: Image.Image, frame: np.ndarray, x: int, y: int) -> None:
    height, width = frame.shape[:2]
    scale = _CELL / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    sheet.paste(picture, (x + (_CELL - size[0]) // 2, y + (_CELL - size[1]) // 2))


def _colour(record: Record) -> tuple[int, int, int]:
    if record.labels:
        return _BLOCKED
    return _UNKNOWN if record.undecided else _SAFE


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut where it would be wider than a cell."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text
