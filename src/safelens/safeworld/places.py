"""The places in which SafeWorld's clips play: backdrops with jittered colours and harmless clutter.

Knows how a place looks and how a caption names it. Knows nothing of actors or truth.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from safelens.safeworld.draw import INK, WHITE, Canvas, Colour
from safelens.safeworld.props import WOOD, cloud, house, lamp, panel, tree

_LEFT, _RIGHT, _TOP, _BOTTOM = -80.0, 336.0, -80.0, 336.0

_PLACES: dict[str, tuple[Colour, Colour, tuple[str, ...]]] = {
    # wall or sky, floor, features that a caption may name
    "street": ((175, 205, 230), (125, 125, 132), ("a lamp", "a house", "the text BUS STOP")),
    "park": ((170, 220, 245), (120, 190, 100), ("a tree", "two trees", "a cloud")),
    "classroom": ((240, 225, 185), (185, 150, 110), ("a green board", "a clock")),
    "room": ((225, 205, 215), (165, 130, 120), ("a window", "a picture")),
    "shop": ((245, 235, 215), (190, 190, 200), ("a clock", "the text SALE", "the text OPEN")),
    "stage": ((95, 70, 110), (150, 105, 70), ("red curtains", "a lamp")),
    "desert": ((250, 225, 170), (225, 190, 120), ("a sun", "a cactus")),
    "night street": ((40, 45, 85), (70, 70, 85), ("a lamp", "a moon")),
}

PLACES: tuple[str, ...] = tuple(_PLACES)
"""Names of all places, as captions use them."""


@dataclass(frozen=True)
class Backdrop:
    """One place with its colours and clutter fixed."""

    place: str
    feature: str
    wall: Colour
    floor: Colour
    horizon: float
    at: tuple[float, float, float]

    def caption(self, *, bare: bool) -> str:
        """As in "A park with a tree.", or only "A park." if ``bare``."""
        return f"A {self.place}." if bare else f"A {self.place} with {self.feature}."

    def draw(self, c: Canvas) -> None:
        """Fills the canvas."""
        h = self.horizon
        c.rect(_LEFT, _TOP, _RIGHT, h, self.wall)
        c.rect(_LEFT, h, _RIGHT, _BOTTOM, self.floor)
        _common(c, self)
        _feature(c, self)


def backdrop(place: str, rng: random.Random) -> Backdrop:
    """A place with colours, horizon and clutter drawn from ``rng``."""
    wall, floor, features = _PLACES[place]

    def jitter(colour: Colour) -> Colour:
        r, g, b = (min(255, max(0, v + rng.randint(-16, 16))) for v in colour)
        return r, g, b

    return Backdrop(
        place=place,
        feature=rng.choice(features),
        wall=jitter(wall),
        floor=jitter(floor),
        horizon=rng.uniform(176, 194),
        at=(rng.random(), rng.random(), rng.random()),
    )


def _shade(colour: Colour, k: float) -> Colour:
    r, g, b = (min(255, int(v * k)) for v in colour)
    return r, g, b


def _common(c: Canvas, b: Backdrop) -> None:
    h, (p, q, _) = b.horizon, b.at
    if b.place in ("street", "night street"):
        dark = _shade(b.wall, 0.84)
        for i, x in enumerate((-60, 20 + 30 * p, 120 + 30 * q, 216)):
            top = h - 70 - 40 * ((i * 0.37 + p) % 1)
            c.rect(x, top, x + 66, h, dark)
        c.rect(_LEFT, h, _RIGHT, h + 8, _shade(b.floor, 1.25))
    elif b.place == "park":
        c.disc(40 + 160 * p, h + 30, 150, _shade(b.floor, 0.93), 60)
        c.rect(_LEFT, h, _RIGHT, _BOTTOM, b.floor)
    elif b.place == "desert":
        c.disc(60 + 150 * q, h + 20, 120, _shade(b.floor, 0.92), 50)
        c.rect(_LEFT, h, _RIGHT, _BOTTOM, b.floor)
    elif b.place == "stage":
        for i in range(-2, 9):
            c.rect(i * 40 + 20 * p, h, i * 40 + 20 * p + 4, _BOTTOM, _shade(b.floor, 0.85))
    else:
        c.rect(_LEFT, h - 8, _RIGHT, h, _shade(b.wall, 0.8))


def _feature(c: Canvas, b: Backdrop) -> None:
    h, (p, _, q) = b.horizon, b.at
    side = 26.0 if q < 0.5 else 230.0
    x, what = side + 14 * (p - 0.5), b.feature
    if what == "a lamp" and b.place == "stage":
        c.poly(((x - 14, 10), (x + 14, 10), (x + 24, 44), (x - 24, 44)), (255, 235, 140))
    elif what == "a lamp":
        lamp(c, x, h + 10)
    elif what == "a house":
        house(c, x, (225, 190, 150), y=h + 4, s=0.7)
    elif what.startswith("the text"):
        panel(
            c, 128 + 60 * (p - 0.5), 28, (what.removeprefix("the text "),), 20, (20, 90, 60), WHITE
        )
    elif what in ("a tree", "two trees"):
        leaf = (50, 130 + int(40 * p), 60)
        tree(c, x, h + 6, 1.0, leaf)
        if what == "two trees":
            tree(c, 256 - x, h + 6, 0.9, leaf)
    elif what == "a cloud":
        cloud(c, 60 + 130 * p, 34)
    elif what == "a green board":
        c.rect(30 + 20 * p, 36, 200 + 20 * p, 118, (30, 90, 60), WOOD)
    elif what == "a clock":
        c.disc(40 + 176 * p, 34, 21, INK)
        c.disc(40 + 176 * p, 34, 18, WHITE)
        c.line(((40 + 176 * p, 22), (40 + 176 * p, 34), (50 + 176 * p, 38)), 3, INK)
    elif what == "a window":
        c.rect(x - 32, 30, x + 32, 100, (170, 220, 250), WHITE)
        c.rect(x - 2, 30, x + 2, 100, WHITE)
    elif what == "a picture":
        c.rect(x - 28, 34, x + 28, 84, (120, 180, 130), WOOD)
    elif what == "red curtains":
        for x0, x1 in ((_LEFT, 24), (232, _RIGHT)):
            c.rect(x0, _TOP, x1, h, (150, 20, 40))
    elif what == "a sun":
        c.disc(40 + 176 * p, 36, 22, (255, 200, 60))
    elif what == "a moon":
        c.disc(40 + 176 * p, 36, 20, (240, 240, 210))
    elif what == "a cactus":
        green = (60, 130, 70)
        c.line(((x, h + 6), (x, h - 70)), 14, green)
        c.line(((x, h - 26), (x + 20, h - 30), (x + 20, h - 52)), 9, green)
        c.line(((x, h - 14), (x - 20, h - 18), (x - 20, h - 40)), 9, green)
