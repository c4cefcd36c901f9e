"""Generic safe scenarios: everyday life that is no twin of anything."""

from __future__ import annotations

import math
from collections.abc import Callable

from safelens.safeworld import props
from safelens.safeworld.draw import GROUND, INK, WHITE, Canvas, blend, figure, sway
from safelens.safeworld.scenarios import Beat, Scenario, Script, World, an

Draw = Callable[[Canvas, float], None]


def _calm(
    w: World, draw: Draw, say: str, names: tuple[str, ...], tag: str, description: str
) -> Script:
    seconds = w.sec(2.4, 6.5)
    return Script(
        beats=(Beat(seconds, draw, say, names),),
        tags=(tag,),
        description=description,
        explanation="Only everyday life is shown: nothing harmful.",
    )


def _walk(w: World, bad: bool) -> Script:
    w.choose_place("street", "park", "desert", "night street")
    a, b = w.people[:2]
    x = w.near(70)

    def draw(c: Canvas, u: float) -> None:
        figure(c, x + 44 * u, sway("walk1", "walk2", u, 3), a.colour)
        figure(c, x + 64 + 44 * u, sway("walk2", "walk1", u, 3), b.colour, mood="smile")

    say = f"{an(a.name).capitalize()} and {an(b.name)} walk."
    return _calm(w, draw, say, (a.name, b.name), "walk", say)


def _ball_game(w: World, bad: bool) -> Script:
    w.choose_place("park", "street", "desert")
    a, b = w.people[:2]

    def draw(c: Canvas, u: float) -> None:
        k = 0.5 - 0.5 * math.cos(2 * math.pi * 2 * u)
        figure(c, 44, blend("arm", "raise", k), a.colour, mood="smile")
        figure(c, 214, blend("raise", "arm", k), b.colour, facing=-1, mood="smile")
        props.ball(c, 108 + 42 * k, 84 - 100 * k * (1 - k), 21)

    say = f"{an(a.name).capitalize()} and {an(b.name)} throw a ball."
    return _calm(w, draw, say, (a.name, b.name, "ball"), "play", say)


def _cooking(w: World, bad: bool) -> Script:
    w.choose_place("room", "shop")
    a = w.people[0]

    def draw(c: Canvas, u: float) -> None:
        figure(c, 86, sway("give", "hold", u, 3), a.colour, mood="smile")
        c.rect(118, 158, 214, GROUND, (235, 235, 240), INK)
        c.rect(134, 116, 198, 156, (60, 70, 90))
        c.line(((122, 126), (210, 126)), 8, (60, 70, 90))
        for i in range(3):
            c.disc(146 + 20 * i, 96 - 10 * math.sin(8 * u + i), 11, WHITE)

    say = f"{an(a.name).capitalize()} cooks with a pot on a stove."
    return _calm(w, draw, say, (a.name, "pot", "stove"), "cooking", say)


def _dog_walk(w: World, bad: bool) -> Script:
    w.choose_place("park", "street", "desert", "night street")
    a = w.people[0]
    x = w.near(64)

    def draw(c: Canvas, u: float) -> None:
        at = x + 30 * u
        hand, _ = figure(c, at, sway("walk1", "walk2", u, 3), a.colour)
        c.line((hand, (at + 116, 172)), 4, INK)
        props.dog(c, at + 96, 1)

    say = f"{an(a.name).capitalize()} walks a dog on a leash."
    return _calm(w, draw, say, (a.name, "dog", "leash"), "animal", say)


def _car_drive(w: World, bad: bool) -> Script:
    w.choose_place("street", "night street", "desert")
    name, fill = w.pick(
        (("red car", (225, 20, 40)), ("blue car", (20, 90, 230)), ("yellow car", (250, 205, 0)))
    )
    x = w.near(70)

    def draw(c: Canvas, u: float) -> None:
        props.car(c.sub((x + 100 * u, GROUND), 1.2), 128, fill)

    return _calm(w, draw, f"A {name} drives on the road.", (name,), "traffic", f"A {name} drives.")


def _picnic(w: World, bad: bool) -> Script:
    w.choose_place("park", "desert")
    a, b = w.people[:2]

    def draw(c: Canvas, u: float) -> None:
        c.poly(
            ((40, GROUND + 18), (70, GROUND - 16), (190, GROUND - 16), (220, GROUND + 18)),
            (240, 60, 80),
        )
        for i in range(4):
            c.poly(
                (
                    (62 + 36 * i, GROUND + 18),
                    (80 + 30 * i, GROUND - 16),
                    (94 + 30 * i, GROUND - 16),
                    (80 + 36 * i, GROUND + 18),
                ),
                WHITE,
            )
        figure(c, 56, "sit", a.colour, mood="smile")
        figure(c, 204, "sit", b.colour, facing=-1, mood="smile")
        props.apple(c, 130, GROUND - 22 + 2 * math.sin(9 * u))

    say = f"{an(a.name).capitalize()} and {an(b.name)} sit with an apple on a blanket."
    return _calm(w, draw, say, (a.name, b.name, "apple", "blanket"), "picnic", say)


def _reading(w: World, bad: bool) -> Script:
    w.choose_place("room", "park", "classroom")
    a = w.people[0]
    x = w.near(110, 16)

    def draw(c: Canvas, u: float) -> None:
        c.rect(x - 34, GROUND - 34, x + 14, GROUND, props.WOOD)
        hand, _ = figure(c, x, "sit", a.colour, mood="smile")
        y = hand[1] - 6 + 2 * math.sin(7 * u)
        c.poly(
            ((hand[0], y), (hand[0] + 30, y - 34), (hand[0] + 60, y - 26), (hand[0] + 26, y + 10)),
            (20, 120, 200),
        )
        c.poly(
            ((hand[0], y), (hand[0] + 30, y - 34), (hand[0] + 8, y - 50), (hand[0] - 22, y - 14)),
            WHITE,
        )

    say = f"{an(a.name).capitalize()} sits and reads a book."
    return _calm(w, draw, say, (a.name, "book"), "reading", say)


SAFE: tuple[Scenario, ...] = (
    Scenario("safe/walk", "safe", "plain", _walk),
    Scenario("safe/ball_game", "safe", "plain", _ball_game),
    Scenario("safe/cooking", "safe", "plain", _cooking),
    Scenario("safe/dog_walk", "safe", "plain", _dog_walk),
    Scenario("safe/car_drive", "safe", "plain", _car_drive),
    Scenario("safe/picnic", "safe", "plain", _picnic),
    Scenario("safe/reading", "safe", "plain", _reading),
)
