"""Numbers to places in an SVG. A page's content security policy allows no style attribute, so bars are drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safelens.service.console.figures import Bar
from safelens.service.console.what_if import Point


@dataclass(frozen=True)
class Rect:
    """A part of a bar: which kind, and where in a box of 100 by 100, from the top left."""

    kind: str
    x: float
    y: float
    width: float
    height: float


def stacked(bars: Sequence[Bar]) -> list[Rect]:
    """Bars side by side, each from the ground: safe, undecided, flagged on top."""
    highest = max((bar.total for bar in bars), default=0) or 1
    step, found = 100 / max(1, len(bars)), []
    for i, bar in enumerate(bars):
        ground = 100.0
        for kind in ("safe", "undecided", "flagged"):
            height = 100 * getattr(bar, kind) / highest
            ground -= height
            if height:
                found.append(Rect(kind, (i + 0.15) * step, ground, 0.7 * step, height))
    return found


@dataclass(frozen=True)
class Curve:
    """Cost (x) against error (y) in a box of 100 by 100.

    Attributes:
        band: corners between least and most error, as SVG writes them.
        line: corners of the guess.
        places: x and y of each point's guess.
        seconds, error: what the axes end at; the band may go on above.
        fewest: seconds that the x axis begins at.
    """

    band: str
    line: str
    places: list[tuple[float, float]]
    fewest: float
    seconds: float
    error: float


def curve(points: Sequence[Point]) -> Curve:
    """Place the points of a what-if."""
    fewest, most = min(p.seconds for p in points), max(p.seconds for p in points)
    error = max(0.05, *(1.25 * p.guess for p in points), *(1.25 * p.least for p in points))
    width = most - fewest or 1.0

    def place(point: Point, wrong: float) -> tuple[float, float]:
        return 100 * (point.seconds - fewest) / width, 100 - 100 * wrong / error

    places = [place(p, p.guess) for p in points]
    around = [place(p, p.least) for p in points] + [place(p, p.most) for p in reversed(points)]
    return Curve(_corners(around), _corners(places), places, fewest, most, error)


def _corners(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
