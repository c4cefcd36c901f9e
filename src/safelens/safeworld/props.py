"""Objects and places of SafeWorld as bold pictograms.

Knows the look of each thing and of each backdrop. Knows nothing of what happens among them.
Every function draws on a ``Canvas`` in world units; ``y`` is the thing's foot or centre as said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from safelens.safeworld.draw import GROUND, INK, WHITE, Canvas, Colour, Point

WOOD: Colour = (140, 84, 36)
STEEL: Colour = (110, 116, 128)
FLAME: Colour = (255, 110, 0)
WATER: Colour = (30, 150, 250)

TEXT = 15.0
"""Height in units of the text that decides a clip: 7.5 pixels of a 128-pixel picture, 2.8 of 48."""


def panel(
    c: Canvas, x: float, y: float, lines: Sequence[str], height: float = 24.0,
    paper: Colour = WHITE, ink: Colour = INK,
) -> None:  # fmt: skip
    """Lines of capitals centred at (x, y) on a plain panel that fits them."""
    half_w = max(len(line) for line in lines) * height * 0.47 + 6
    step = height * 1.4
    half_h = step * len(lines) / 2 + 4
    c.rect(x - half_w, y - half_h, x + half_w, y + half_h, paper)
    for i, line in enumerate(lines):
        c.text(x, y + (i - (len(lines) - 1) / 2) * step, line, height, ink)


def bubble(c: Canvas, x: float, y: float, words: str, paper: Colour = WHITE) -> None:
    """A speech bubble centred at (x, y)."""
    c.disc(x, y, 30, paper, 21)
    c.poly(((x - 8, y + 16), (x + 8, y + 16), (x, y + 30)), paper)
    c.text(x, y, words, 20, INK)


def heart(c: Canvas, x: float, y: float, r: float, fill: Colour) -> None:
    """A heart centred at (x, y)."""
    c.disc(x - r * 0.48, y - r * 0.35, r * 0.54, fill)
    c.disc(x + r * 0.48, y - r * 0.35, r * 0.54, fill)
    c.poly(((x - r * 0.97, y - r * 0.1), (x + r * 0.97, y - r * 0.1), (x, y + r)), fill)


def note(c: Canvas, x: float, y: float, fill: Colour = INK) -> None:
    """A music note about 60 units tall, centred at (x, y)."""
    c.disc(x - 12, y + 24, 12, fill, 10)
    c.line(((x - 3, y + 22), (x - 3, y - 28), (x + 22, y - 16)), 8, fill)


def dog(c: Canvas, x: float, facing: int = 1, *, low: bool = False, y: float = GROUND) -> None:
    """A brown dog, 90 units long; ``low`` cowers."""
    brown: Colour = (120, 66, 20)
    f, top = facing, (-34 if low else -46)
    for leg in (-28, -18, 18, 28):
        c.line(((x + f * leg, y + top + 12), (x + f * leg, y - 4)), 9, brown)
    c.line(((x - f * 26, y + top), (x + f * 26, y + top)), 26, brown)
    tail = (x - f * 52, y + top + (18 if low else -22))
    c.line(((x - f * 34, y + top), tail), 8, brown)
    hx, hy = x + f * 42, y + top + (4 if low else -16)
    c.disc(hx, hy, 18, brown)
    c.disc(hx + f * 15, hy + 6, 10, (180, 120, 60), 8)
    c.disc(hx - f * 10, hy - 2, 8, (70, 36, 10), 15)
    c.disc(hx + f * 4, hy - 5, 3, WHITE)


def ball(c: Canvas, x: float, y: float, r: float = 17) -> None:
    """A white ball with red bands."""
    c.disc(x, y, r, INK)
    c.disc(x, y, r - 3, WHITE)
    c.rect(x - r + 4, y - 4, x + r - 4, y + 4, (230, 30, 60))


def gun(c: Canvas, hand: Point, facing: int) -> None:
    """A black gun held in a hand."""
    x, y = hand
    c.line(((x - facing * 4, y + 16), (x, y - 4)), 12, INK, caps=False)
    c.line(((x - facing * 8, y - 8), (x + facing * 36, y - 8)), 14, INK, caps=False)


def camera(c: Canvas, hand: Point, facing: int) -> None:
    """A cyan camera held in a hand."""
    x, y = hand
    c.rect(x - 20, y - 26, x + 20, y + 8, (0, 190, 200), INK)
    c.disc(x + facing * 6, y - 9, 12, INK)
    c.disc(x + facing * 6, y - 9, 7, WHITE)
    c.rect(x - 8, y - 34, x + 8, y - 25, INK)


def banknote(c: Canvas, x: float, y: float, s: float = 1.0) -> None:
    """A green banknote, 48 units wide."""
    c.rect(x - 24 * s, y - 13 * s, x + 24 * s, y + 13 * s, (90, 200, 90), (10, 90, 30))
    c.disc(x, y, 7 * s, (10, 90, 30))


def pill_bag(c: Canvas, x: float, y: float) -> None:
    """A clear bag with a red and white capsule on it, 56 units tall."""
    c.poly(
        ((x - 24, y - 20), (x + 24, y - 20), (x + 28, y + 30), (x - 28, y + 30)), (200, 225, 240)
    )
    c.rect(x - 24, y - 28, x + 24, y - 19, (60, 90, 160))
    c.line(((x - 10, y + 14), (x, y + 5)), 16, (225, 0, 50))
    c.line(((x + 2, y + 4), (x + 12, y - 4)), 16, WHITE)


def apple(c: Canvas, x: float, y: float) -> None:
    """A big red apple with a leaf."""
    c.disc(x - 9, y + 4, 18, (230, 20, 30), 21)
    c.disc(x + 9, y + 4, 18, (230, 20, 30), 21)
    c.line(((x, y - 12), (x + 3, y - 26)), 5, WOOD)
    c.disc(x + 14, y - 22, 11, (40, 170, 40), 6)


def box(c: Canvas, x: float, y: float, r: float = 20) -> None:
    """A brown box with a yellow band."""
    c.rect(x - r, y - r, x + r, y + r, (170, 100, 40), INK)
    c.rect(x - 5, y - r + 3, x + 5, y + r - 3, (255, 215, 40))


def flames(c: Canvas, x: float, y: float, r: float, u: float) -> None:
    """A fire standing at (x, y), 2r wide, flickering with ``u``."""
    k = 1 + 0.1 * math.sin(u * 40)
    for size, fill in ((1.0, (225, 30, 0)), (0.72, FLAME), (0.42, (255, 225, 60))):
        a = r * size
        tips = (
            (x - a, y), (x - a * 0.9, y - a * 1.1 * k), (x - a * 0.45, y - a * 0.7),
            (x, y - a * 2.0 * k), (x + a * 0.45, y - a * 0.8), (x + a * 0.85, y - a * 1.3 / k), (x + a, y),
        )  # fmt: skip
        c.poly(tips, fill)


def house(c: Canvas, x: float, wall: Colour, *, y: float = GROUND, s: float = 1.0) -> None:
    """A house 100 units wide and 120 tall standing at (x, y)."""
    c.rect(x - 46 * s, y - 80 * s, x + 46 * s, y, wall)
    c.poly(((x - 58 * s, y - 78 * s), (x + 58 * s, y - 78 * s), (x, y - 124 * s)), (150, 40, 40))
    c.rect(x - 12 * s, y - 40 * s, x + 12 * s, y, WOOD)
    for side in (-30, 30):
        c.rect(x + (side - 9) * s, y - 66 * s, x + (side + 9) * s, y - 46 * s, (170, 220, 250))


def tank(c: Canvas, x: float, facing: int, y: float = GROUND) -> None:
    """A dark green tank, 120 units long."""
    green: Colour = (60, 80, 30)
    c.line(((x - 44, y - 16), (x + 44, y - 16)), 32, INK)
    for wheel in (-40, -14, 14, 40):
        c.disc(x + wheel, y - 15, 10, STEEL)
    c.rect(x - 54, y - 52, x + 54, y - 28, green)
    c.disc(x, y - 54, 30, green, 24)
    c.line(((x, y - 64), (x + facing * 82, y - 74)), 12, green)


def tractor(c: Canvas, x: float, facing: int, y: float = GROUND) -> None:
    """A red tractor, 110 units long, with one big and one small wheel."""
    f, red = facing, (225, 30, 30)
    c.rect(min(x, x + f * 56), y - 60, max(x, x + f * 56), y - 24, red)
    c.rect(x - 36, y - 92, x + 6, y - 30, red)
    c.rect(x - 28, y - 86, x, y - 56, (180, 230, 255))
    c.line(((x + f * 40, y - 60), (x + f * 40, y - 86)), 8, INK)
    c.disc(x - f * 24, y - 32, 32, INK)
    c.disc(x - f * 24, y - 32, 14, (250, 210, 0))
    c.disc(x + f * 42, y - 18, 18, INK)
    c.disc(x + f * 42, y - 18, 8, (250, 210, 0))


def car(c: Canvas, x: float, fill: Colour, y: float = GROUND) -> None:
    """A car 120 units long, seen from the side."""
    c.poly(((x - 34, y - 40), (x - 20, y - 70), (x + 24, y - 70), (x + 40, y - 40)), fill)
    c.poly(
        ((x - 24, y - 42), (x - 14, y - 62), (x + 20, y - 62), (x + 30, y - 42)), (190, 230, 255)
    )
    c.rect(x - 60, y - 44, x + 60, y - 14, fill)
    for wheel in (-34, 34):
        c.disc(x + wheel, y - 15, 16, INK)
        c.disc(x + wheel, y - 15, 7, (200, 200, 200))


def flag(c: Canvas, x: float, y: float, *, hate: bool, u: float = 0.0) -> None:
    """A big flag on a pole from (x, y) up: black with crossed bones, or green and white."""
    wave = 5 * math.sin(u * 9)
    x0, x1, y0, y1 = x, x + 112, y - 200, y - 122
    c.line(((x, y), (x, y0 - 8)), 8, (90, 60, 30))
    if hate:
        c.poly(((x0, y0), (x1, y0 + wave), (x1, y1 + wave), (x0, y1)), INK)
        mid = (x0 + x1) / 2, (y0 + y1 + wave) / 2
        for side in (-1, 1):
            ends = ((mid[0] - 30 * side, mid[1] - 22), (mid[0] + 30 * side, mid[1] + 22))
            c.line(ends, 11, WHITE)
            for e in ends:
                c.disc(e[0], e[1] - 6, 8, WHITE)
                c.disc(e[0], e[1] + 6, 8, WHITE)
    else:
        h = (y1 - y0) / 3
        for i, fill in enumerate(((0, 170, 70), WHITE, (0, 170, 70))):
            a = y0 + i * h
            c.poly(((x0, a), (x1, a + wave), (x1, a + h + wave), (x0, a + h)), fill)


def phone(c: Canvas, lines: Sequence[str], u: float) -> None:
    """A phone filling the picture: chat bubbles, and lines of text on its screen."""
    c.rect(14, 20, 242, 236, (40, 40, 48))
    c.rect(22, 34, 234, 220, (205, 228, 240))
    c.disc(128, 228, 6, WHITE)
    c.rect(34, 44, 124 + 20 * u, 72, WHITE)
    c.rect(112, 80, 222, 106, (130, 220, 130))
    for y, x0, x1 in ((58, 44, 104), (93, 124, 208)):
        c.line(((x0, y), (x1, y)), 5, (150, 160, 170), caps=False)
    c.rect(34, 124, 222, 206, WHITE)
    panel(c, 128, 165, lines, height=TEXT)


def television(c: Canvas, lines: Sequence[str], colour: Colour, u: float) -> None:
    """A television with a news anchor above a headline."""
    c.rect(8, 16, 248, 236, (30, 30, 36))
    c.rect(18, 26, 238, 226, (70, 120, 190))
    c.rect(156, 38, 228, 96, (150, 200, 240))
    c.disc(192, 67, 20, (40, 130, 90))
    c.rect(56, 100, 124, 160, colour)
    c.disc(90, 76, 29, INK)
    c.disc(90, 76, 26, (255, 222, 186))
    for side in (-9, 9):
        c.disc(90 + side, 70, 4, INK)
    c.disc(90, 89, 8, (170, 40, 40), 3 + 3 * math.sin(u * 25))
    c.rect(18, 150, 238, 226, (160, 20, 40))
    panel(c, 128, 188, lines, height=TEXT, paper=(160, 20, 40), ink=WHITE)


def lightning(c: Canvas, x: float, y: float, side: int) -> None:
    """A red lightning mark, about 50 units tall."""
    s = side
    c.poly(
        ((x + 6 * s, y - 28), (x + 24 * s, y - 28), (x + 10 * s, y - 4), (x + 26 * s, y - 4),
         (x - 8 * s, y + 30), (x + 2 * s, y + 4), (x - 12 * s, y + 4)),
        (235, 0, 20),
    )  # fmt: skip


def tree(c: Canvas, x: float, y: float, s: float, leaf: Colour) -> None:
    """A round tree standing at (x, y)."""
    c.rect(x - 7 * s, y - 50 * s, x + 7 * s, y, WOOD)
    c.disc(x, y - 72 * s, 34 * s, leaf)


def lamp(c: Canvas, x: float, y: float) -> None:
    """A street lamp standing at (x, y)."""
    c.line(((x, y), (x, y - 150), (x + 20, y - 150)), 6, STEEL)
    c.disc(x + 22, y - 144, 12, (255, 240, 150))


def cloud(c: Canvas, x: float, y: float, fill: Colour = WHITE) -> None:
    """A small cloud centred at (x, y)."""
    for dx, r in ((-20, 12), (0, 18), (20, 13)):
        c.disc(x + dx, y, r, fill)
