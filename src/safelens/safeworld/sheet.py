"""A sheet of samples: one frame a scenario, each violating scene beside its safe twin.

Knows how to lay pictures out. Knows nothing of files other than its own.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from safelens.safeworld import Scene

_CELL, _TEXT, _GAP, _COLUMNS = 160, 30, 8, 8
_INK, _PAPER, _BLOCKED, _SAFE = (34, 34, 34), (250, 250, 248), (196, 60, 50), (50, 130, 80)


def write_sheet(path: str | os.PathLike[str], scenes: Sequence[Scene]) -> None:
    """Draws the sheet as PNG.

    A frame is taken at the middle of the violation, of the twin at the same time; red marks a
    violating clip, green a safe one.

    Args:
        path: the file.
        scenes: one a scenario, in the order to show.
    """
    pairs = [(scene, scene.twin()) if scene.truth.labels else (scene,) for scene in scenes]
    cells: list[tuple[Scene, float]] = []
    for group in sorted(pairs, key=len, reverse=True):
        start, end = group[0].truth.interval or (0.0, group[0].duration_s)
        cells += [(scene, (start + end) / 2) for scene in group]
    rows = -(-len(cells) // _COLUMNS)
    step_x, step_y = _CELL + _GAP, _CELL + _TEXT + _GAP
    sheet = Image.new("RGB", (_COLUMNS * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    for number, (scene, t) in enumerate(cells):
        x = _GAP + number % _COLUMNS * step_x
        y = _GAP + number // _COLUMNS * step_y
        frame = Image.fromarray(scene.render(t, 256)).resize((_CELL, _CELL), Image.Resampling.BOX)
        sheet.paste(frame, (x, y))
        colour = _BLOCKED if scene.truth.labels else _SAFE
        pen.rectangle((x, y + _CELL, x + _CELL - 1, y + _CELL + 2), fill=colour)
        name = "two at once" if "+" in scene.truth.scenario else scene.truth.scenario
        name = "the same, safe twin" if scene.truth.twin else name
        pen.text((x, y + _CELL + 4), name, _INK, font=font)
        pen.text((x, y + _CELL + 16), " + ".join(scene.truth.labels) or "safe", colour, font=font)
    part = Path(path).with_name(f".{Path(path).name}.part")
    sheet.save(part, format="PNG")
    os.replace(part, path)
