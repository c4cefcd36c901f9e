"""What a SafeWorld scenario is made of: a world to draw from, beats in time, and the script.

Knows the grammar only; the scenarios themselves are in ``scenarios_<category>``. A scenario must draw
all its random choices before it looks at ``bad``, so that a violating clip and its safe twin share
one world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from safelens.safeworld.draw import PEOPLE, Canvas, Colour

T = TypeVar("T")
Draw = Callable[[Canvas, float], None]
"""Draws one beat; the number runs from 0 to 1 over the beat."""


@dataclass(frozen=True)
class Actor:
    """A person: how captions call them and their colour."""

    name: str
    colour: Colour

    @property
    def child(self) -> str:
        """The name of the same actor drawn as a child."""
        return self.name.replace("person", "child")


@dataclass(frozen=True)
class Beat:
    """A stretch of time in which one caption holds.

    Attributes:
        seconds: How long it lasts.
        draw: Draws it, given its progress.
        say: What one frame of it shows, in sentences without the place.
        names: Noun phrases in ``say`` that a caption must name.
        harm: Whether the violation is visible in it.
    """

    seconds: float
    draw: Draw
    say: str
    names: tuple[str, ...]
    harm: bool = False


@dataclass(frozen=True)
class Script:
    """A whole clip: its beats and what is true of it (see ``Truth`` for the fields)."""

    beats: tuple[Beat, ...]
    tags: tuple[str, ...]
    description: str
    explanation: str
    bare: bool = False
    """True where the scene itself may hide the place's features, so captions leave them out."""

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return sum(b.seconds for b in self.beats)

    @property
    def interval(self) -> tuple[float, float] | None:
        """From the first to the last second in which harm is visible; None without harm."""
        start, spans = 0.0, []
        for b in self.beats:
            if b.harm:
                spans.append((start, start + b.seconds))
            start += b.seconds
        return (spans[0][0], spans[-1][1]) if spans else None

    def at(self, t: float) -> tuple[Beat, float]:
        """The beat at second ``t`` (clamped to the clip) and the progress in it."""
        start = 0.0
        for b in self.beats[:-1]:
            if t < start + b.seconds:
                return b, max(0.0, (t - start) / b.seconds)
            start += b.seconds
        last = self.beats[-1]
        return last, min(1.0, max(0.0, (t - start) / last.seconds))


@dataclass
class World:
    """The random choices of one clip.

    Attributes:
        rng: Source of all choices.
        people: Actors in random order, each of another colour.
        place: Set by ``choose_place``.
    """

    rng: random.Random
    people: tuple[Actor, ...] = field(init=False)
    place: str = "street"

    def __post_init__(self) -> None:
        names = list(PEOPLE)
        self.rng.shuffle(names)
        self.people = tuple(Actor(f"{n} person", PEOPLE[n]) for n in names)

    def choose_place(self, *places: str) -> None:
        """Picks where the clip plays."""
        self.place = self.rng.choice(places)

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return self.rng.choice(options)

    def sec(self, low: float, high: float) -> float:
        """A length of time in seconds."""
        return self.rng.uniform(low, high)

    def near(self, x: float, spread: float = 8.0) -> float:
        """A coordinate near ``x``."""
        return x + self.rng.uniform(-spread, spread)


@dataclass(frozen=True)
class Scenario:
    """A kind of clip.

    Attributes:
        name: ``category/subcategory``.
        label: The category id that its violating version violates, or ``safe``.
        difficulty: What decides it: plain, order, context, moment or text.
        play: Writes the script; the flag asks for the violating version.
    """

    name: str
    label: str
    difficulty: str
    play: Callable[[World, bool], Script]


def phrase(lines: Sequence[str]) -> str:
    """On-screen text as captions quote it."""
    return " ".join(lines)


def an(noun: str) -> str:
    """``noun`` with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
