"""Pictogram drawing for SafeWorld: a canvas in world units and stick figures on it.

Knows how to put shapes, text and people on a picture of 256 x 256 world units at any pixel size.
Knows nothing of scenarios, truth or time; objects other than people are in ``props``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Colour = tuple[int, int, int]

WORLD = 256.0
"""Side of the world in world units."""

GROUND = 224.0
"""Height (y grows downwards) on which actors stand, in world units."""

PEOPLE: dict[str, Colour] = {
    "red": (214, 28, 40),
    "blue": (30, 80, 220),
    "green": (20, 140, 50),
    "yellow": (250, 208, 20),
    "purple": (140, 40, 175),
    "orange": (250, 125, 10),
}
"""Colours of actors: name in captions to RGB."""

INK: Colour = (24, 22, 28)
WHITE: Colour = (250, 250, 248)
SKIN: Colour = (255, 222, 186)
_SUPERSAMPLING = 2
_CAP_HEIGHT = 0.71  # capitals' height in ems of Pillow's default font


@lru_cache(maxsize=256)
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


class Canvas:
    """A picture addressed in world units, drawn at twice its size and reduced at the end.

    Args:
        size: Side of the finished picture in pixels.
        zoom: Camera zoom about the centre (1 shows the whole world).
        shift: Camera shift in world units.
        mirror: Mirrors all geometry left to right; text stays readable.
    """

    def __init__(
        self, size: int, *, zoom: float = 1.0, shift: Point = (0.0, 0.0), mirror: bool = False
    ) -> None:
        pixels = size * _SUPERSAMPLING
        unit = pixels / WORLD * zoom
        half = pixels / 2
        self._image = Image.new("RGB", (pixels, pixels))
        self._draw = ImageDraw.Draw(self._image)
        self._sx = -unit if mirror else unit
        self._sy = unit
        self._ox = half - self._sx * (WORLD / 2 + shift[0])
        self._oy = half - self._sy * (WORLD / 2 + shift[1])

    def sub(self, at: Point, scale: float, anchor: Point = (WORLD / 2, GROUND)) -> Canvas:
        """The same picture with a smaller or larger world, whose ``anchor`` lies at ``at``."""
        other = object.__new__(Canvas)
        other._image, other._draw = self._image, self._draw
        other._sx, other._sy = self._sx * scale, self._sy * scale
        other._ox = self._ox + self._sx * (at[0] - scale * anchor[0])
        other._oy = self._oy + self._sy * (at[1] - scale * anchor[1])
        return other

    def _xy(self, p: Point) -> Point:
        return self._ox + self._sx * p[0], self._oy + self._sy * p[1]

    def rect(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour, edge: Colour | None = None
    ) -> None:
        """An upright rectangle, with a 4-unit edge inside it if asked."""
        (a, b), (c, d) = self._xy((x0, y0)), self._xy((x1, y1))
        if a > c:
            a, c = c, a
        width = max(1, round(4 * self._sy)) if edge else 1
        self._draw.rectangle((a, b, c, d), fill=fill, outline=edge, width=width)

    def disc(self, x: float, y: float, r: float, fill: Colour, ry: float | None = None) -> None:
        """A disc of radius ``r``, or an upright ellipse of radii ``r`` and ``ry``."""
        a, b = self._xy((x, y))
        rx, ry = r * self._sy, (r if ry is None else ry) * self._sy
        self._draw.ellipse((a - rx, b - ry, a + rx, b + ry), fill=fill)

    def poly(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([self._xy(p) for p in points], fill=fill)

    def line(
        self, points: Sequence[Point], width: float, fill: Colour, *, caps: bool = True
    ) -> None:
        """A thick line through ``points``; joints and ends are round with ``caps``."""
        at = [self._xy(p) for p in points]
        thick = max(1, round(width * self._sy))
        for a, b in pairwise(at):
            self._draw.line((a, b), fill=fill, width=thick)
        if caps:
            r = thick / 2
            for x, y in at:
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def star(self, x: float, y: float, r: float, fill: Colour, points: int = 8) -> None:
        """A burst with ``points`` rays."""
        corners = []
        for i in range(2 * points):
            angle = math.pi * i / points
            reach = r if i % 2 == 0 else r * 0.45
            corners.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        self.poly(corners, fill)

    def text(self, x: float, y: float, words: str, height: float, fill: Colour) -> None:
        """One line of text centred at (x, y); ``height`` is that of its capitals in units."""
        a, b = self._xy((x, y))
        pixels = max(4, round(height * self._sy / _CAP_HEIGHT))
        self._draw.text(
            (a, b + height * self._sy / 2),
            words,
            fill=fill,
            font=_font(pixels),
            anchor="ms",
            stroke_width=round(pixels * 0.035),
            stroke_fill=fill,
        )

    def finish(self, brightness: float = 1.0) -> np.ndarray:
        """The picture as uint8 RGB of shape (size, size, 3)."""
        image = self._image.reduce(_SUPERSAMPLING)
        if brightness != 1.0:
            image = image.point([min(255, round(v * brightness)) for v in range(256)] * 3)
        return np.array(image)


@dataclass(frozen=True)
class Pose:
    """Joints of a figure facing right, in units from the point between its feet."""

    head: Point
    neck: Point
    hip: Point
    front_hand: Point
    back_hand: Point
    front_knee: Point
    front_foot: Point
    back_knee: Point
    back_foot: Point


def _upright(
    front_hand: Point,
    back_hand: Point = (-17, -54),
    front_foot: Point = (13, 0),
    back_foot: Point = (-13, 0),
    lean: float = 0.0,
) -> Pose:
    return Pose(
        head=(lean * 1.3, -113),
        neck=(lean, -94),
        hip=(0, -50),
        front_hand=front_hand,
        back_hand=back_hand,
        front_knee=(front_foot[0] * 0.55 + 2, front_foot[1] * 0.5 - 25),
        front_foot=front_foot,
        back_knee=(back_foot[0] * 0.55 + 2, back_foot[1] * 0.5 - 25),
        back_foot=back_foot,
    )


POSES: dict[str, Pose] = {
    "stand": _upright((19, -54)),
    "walk1": _upright((22, -62), (-24, -60), (25, 0), (-25, 0), 2),
    "walk2": _upright((8, -54), (-10, -54), (5, 0), (-5, -4), 2),
    "arm": _upright((56, -84), (-24, -66), (26, 0), (-26, 0), 9),
    "point": _upright((54, -104), (-17, -54), (12, 0), (-12, 0), -5),
    "raise": _upright((34, -134)),
    "swing": _upright((46, -56), (-22, -70), (24, 0), (-22, 0), 12),
    "hands_up": _upright((36, -136), (-36, -136)),
    "give": _upright((46, -72), (40, -60), lean=3),
    "hold": _upright((30, -72), (24, -64)),
    "hug": _upright((42, -80), (38, -64), (16, 0), (-14, 0), 8),
    "aim": _upright((52, -94), (46, -90), (22, 0), (-22, 0)),
    "guard": _upright((26, -92), (16, -84), (20, 0), (-20, 0), 2),
    "dance1": _upright((34, -134), (-30, -58), (30, -26), (-10, 0), -5),
    "dance2": _upright((28, -58), (-38, -132), (12, 0), (-30, -24), 5),
    "tied": _upright((-12, -62), (-15, -60), (5, 0), (-5, 0)),
    "kneel": Pose(
        (20, -74), (10, -60), (-8, -28), (32, -66), (20, -52), (12, -4), (-18, -4), (4, -2), (-32, -4)
    ),
    "sit": Pose(
        (-2, -94), (-2, -76), (-6, -32), (24, -52), (20, -50), (24, -34), (28, 0), (18, -32), (18, 0)
    ),
    "lie": Pose(
        (-60, -16), (-40, -13), (4, -11), (-18, -32), (-8, -4), (28, -15), (54, -8), (28, -8), (52, -4)
    ),
}  # fmt: skip
"""Named poses, all facing right."""


def blend(a: str, b: str, u: float) -> Pose:
    """The pose a share ``u`` of the way from pose ``a`` to pose ``b``."""
    p, q = POSES[a], POSES[b]

    def mix(x: Point, y: Point) -> Point:
        return x[0] + (y[0] - x[0]) * u, x[1] + (y[1] - x[1]) * u

    return Pose(*(mix(getattr(p, f), getattr(q, f)) for f in Pose.__dataclass_fields__))


def sway(a: str, b: str, u: float, turns: float = 1.5) -> Pose:
    """Back and forth between two poses, ``turns`` times while ``u`` goes from 0 to 1."""
    return blend(a, b, 0.5 - 0.5 * math.cos(2 * math.pi * turns * u))


def figure(
    c: Canvas,
    x: float,
    pose: Pose | str,
    colour: Colour,
    *,
    facing: int = 1,
    scale: float = 1.0,
    y: float = GROUND,
    mood: str = "flat",
    stripes: bool = False,
    head: Colour = SKIN,
) -> tuple[Point, Point]:
    """Draws a stick figure.

    Args:
        c: Where to draw.
        x: Place of its feet in world units.
        pose: A pose or the name of one.
        colour: Of torso and limbs.
        facing: 1 looks right, -1 looks left.
        scale: 1 is 130 units tall.
        y: Height of its feet in world units.
        mood: ``flat``, ``smile``, ``sad`` or ``cry``.
        stripes: Black and white stripes over the torso (a referee).
        head: Colour of the head.

    Returns:
        The places of the front hand and of the head's centre, in world units.
    """
    p = POSES[pose] if isinstance(pose, str) else pose

    def at(q: Point) -> Point:
        return x + facing * scale * q[0], y + scale * q[1]

    limb = 12 * scale
    neck, hip = at(p.neck), at(p.hip)
    shoulder = at((p.neck[0] * 0.88 + p.hip[0] * 0.12, p.neck[1] * 0.88 + p.hip[1] * 0.12))
    c.line((shoulder, at(p.back_hand)), limb * 0.9, colour)
    c.line((hip, at(p.back_knee), at(p.back_foot)), limb, colour)
    c.line((hip, at(p.front_knee), at(p.front_foot)), limb, colour)
    c.line((neck, hip), 24 * scale, colour)
    if stripes:
        for i in range(4):
            v = 0.1 + i * 0.25
            a = (neck[0] + (hip[0] - neck[0]) * v, neck[1] + (hip[1] - neck[1]) * v)
            c.rect(a[0] - 12 * scale, a[1], a[0] + 12 * scale, a[1] + 6 * scale, WHITE)
    centre = at(p.head)
    c.disc(*centre, 21 * scale, INK)
    c.disc(*centre, 18 * scale, head)
    _face(c, centre, facing, scale, mood)
    hand = at(p.front_hand)
    c.line((shoulder, hand), limb * 0.9, colour)
    c.disc(*hand, 7 * scale, SKIN)
    return hand, centre


def _face(c: Canvas, at: Point, facing: int, s: float, mood: str) -> None:
    x, y = at[0] + facing * 4 * s, at[1]
    for side in (-6, 6):
        c.disc(x + side * s, y - 4 * s, 2.6 * s, INK)
    lift = {"flat": 0.0, "smile": -5.0, "sad": 5.0, "cry": 5.0}[mood] * s
    mouth = ((x - 7 * s, y + 8 * s + lift), (x, y + 8 * s), (x + 7 * s, y + 8 * s + lift))
    c.line(mouth, 3.2 * s, INK, caps=False)
    if mood == "cry":
        for side in (-9, 9):
            c.disc(x + side * s, y + 8 * s, 5 * s, (40, 150, 255), 10 * s)
