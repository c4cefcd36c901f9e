"""How many replicas of S1 and S2, at what cost, for what delay: from measured seconds a video.

Knows what is wanted, prices, and how the cheapest plan is searched. How a plan behaves is the matter of `simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from safelens.engine.simulate import Simulated, Times, by_the_hour, simulate
from safelens.verdict import Verdict

MOST_SIMULATED = 100_000
"""Videos that are simulated at most: of more, the busiest stretch of a curve, or a part of a backlog."""
_SEED = 0
Work = tuple[Times, Times, Times]


class PlanError(ValueError):
    """What is asked for cannot be planned; the message says what to change."""


@dataclass(frozen=True)
class Measured:
    """What videos took on one replica of each stage, of which the simulation draws.

    Attributes:
        decode_s: seconds of decoding a video, shape (N,).
        screen_s: seconds of S1's model for the same videos, shape (N,).
        deliberate_s: seconds of S2 a video that it was asked, shape (M,).
        escalated: share of videos that S2 is asked.
    """

    decode_s: Times
    screen_s: Times
    deliberate_s: Times
    escalated: float

    @classmethod
    def of(cls, verdicts: Iterable[Verdict], decoders: int = 1) -> Measured:
        """From the seconds that verdicts of a run carry.

        Decoding runs beside S1's model, in a replica's own cores, so the seconds hold for replicas that have as many.
        Verdicts of either engine will do; the local engine's lack what S2 pays for reading the video once more.

        Args:
            verdicts: of a run.
            decoders: decoding processes of a replica.

        Raises:
            PlanError: none was screened.
        """
        decode, screen, deliberate = [], [], []
        for verdict in verdicts:
            t = verdict.timing
            if "screen" not in t:
                continue
            second = verdict.decided_by == "deliberate"
            decode.append(t["decode"] / decoders)
            screen.append(t["screen"] + (0.0 if second else t.get("evidence", 0.0)))
            if second:
                own = ("take_up", "caption", "deliberate", "evidence")
                deliberate.append(sum(t.get(name, 0.0) for name in own))
        if not screen:
            raise PlanError("no video of these verdicts was screened; give those of another run")
        return cls(
            np.array(decode),
            np.array(screen),
            np.array(deliberate or [0.0]),
            len(deliberate) / len(screen),
        )

    def draw(self, count: int, rng: np.random.Generator) -> Work:
        """Seconds of decoding, S1 and S2 for some videos, NaN where S2 is not asked; each of shape (count,)."""
        deliberate = rng.choice(self.deliberate_s, count)
        deliberate[rng.random(count) >= self.escalated] = np.nan
        drawn = rng.integers(len(self.screen_s), size=count)
        return self.decode_s[drawn], self.screen_s[drawn], deliberate


@dataclass(frozen=True)
class Price:
    """What replicas cost.

    Attributes:
        gpu_hour: of one GPU, in any currency.
        screen_gpus: GPUs of a replica of S1, such as 0.25.
        deliberate_gpus: of one of S2.
    """

    gpu_hour: float
    screen_gpus: float = 1.0
    deliberate_gpus: float = 1.0

    def gpus(self, screen: int, deliberate: int) -> int:
        """GPUs that hold so many replicas; they are rented whole."""
        return math.ceil(screen * self.screen_gpus + deliberate * self.deliberate_gpus - 1e-9)


@dataclass(frozen=True)
class Plan:
    """Replicas, and what comes of them.

    Attributes:
        screen: replicas of S1.
        deliberate: replicas of S2.
        gpus: GPUs that hold them.
        hours: from the first video to the last verdict.
        cost: of the GPUs over these hours.
        delay_s: of the slowest of the share asked for, seconds.
        screen_busy: share of time that a replica of S1 works.
        deliberate_busy: the same of S2.
    """

    screen: int
    deliberate: int
    gpus: int
    hours: float
    cost: float
    delay_s: float
    screen_busy: float
    deliberate_busy: float


def plan_backlog(measured: Measured, price: Price, *, videos: int, hours: float) -> Plan:
    """The cheapest plan that moderates videos which are all there within some hours.

    Args:
        measured: seconds a video.
        price: of replicas.
        videos: how many there are.
        hours: until the last verdict.

    Raises:
        PlanError: a number is out of range.
    """
    if videos < 1 or hours <= 0:
        raise PlanError(f"{videos} videos in {hours:g} hours: expected numbers above 0")
    shown = min(videos, MOST_SIMULATED)
    times = videos / shown
    rng = np.random.default_rng(_SEED)
    work = measured.draw(shown, rng)

    def run(screen: int, deliberate: int) -> Simulated:
        return simulate(np.zeros(shown), *work, screen=screen, deliberate=deliberate)

    def good(found: Simulated) -> bool:
        return found.end * times <= hours * 3600

    least = _least(work, hours * 3600 / times)
    screen, deliberate, found = _cheapest(run, good, price, least)
    taken = found.end * times / 3600
    return _plan(price, screen, deliberate, found, taken, found.end * times)


def plan_stream(
    measured: Measured, price: Price, *, curve: Sequence[float], delay_s: float, share: float = 0.95
) -> Plan:
    """The cheapest plan that gives a share of videos their verdict within a delay.

    Args:
        measured: seconds a video.
        price: of replicas, which run through all hours.
        curve: videos of each hour, one after the other.
        delay_s: from arrival to verdict, seconds.
        share: of videos to which the delay applies.

    Raises:
        PlanError: a number is out of range, or no number of replicas can keep the delay.
    """
    if not curve or min(curve) < 0 or max(curve) <= 0 or not 0 < share < 1:
        raise PlanError("expected hours with videos in some of them, and a share between 0 and 1")
    rng = np.random.default_rng(_SEED)
    busiest = _busiest(curve)
    arrivals = by_the_hour(busiest, rng)[:MOST_SIMULATED]
    if not len(arrivals):
        raise PlanError("so few videos arrive that there is nothing to simulate; give more hours")
    work = measured.draw(len(arrivals), rng)
    alone = np.quantile(sum(np.nan_to_num(part) for part in work), share)
    if alone > delay_s:
        raise PlanError(
            f"{share:.0%} of videos within {delay_s:g} s: they take {alone:.3g} s without waiting; "
            "allow more, or measure on a faster machine"
        )

    def run(screen: int, deliberate: int) -> Simulated:
        return simulate(arrivals, *work, screen=screen, deliberate=deliberate)

    def good(found: Simulated) -> bool:
        return float(np.quantile(found.delays, share)) <= delay_s

    span = float(arrivals[-1] - arrivals[0]) + delay_s
    screen, deliberate, found = _cheapest(run, good, price, _least(work, span))
    return _plan(
        price, screen, deliberate, found, float(len(curve)),
        float(np.quantile(found.delays, share)),
    )  # fmt: skip


def _busiest(curve: Sequence[float]) -> Sequence[float]:
    """The stretch of hours around the peak that holds as many videos as can be simulated."""
    if sum(curve) <= MOST_SIMULATED:
        return curve
    start = end = int(np.argmax(curve))
    while sum(curve[start : end + 1]) < MOST_SIMULATED:
        left = curve[start - 1] if start else -1.0
        right = curve[end + 1] if end + 1 < len(curve) else -1.0
        start, end = (start - 1, end) if left > right else (start, end + 1)
    return curve[start : end + 1]


def _least(work: Work, seconds: float) -> tuple[int, int]:
    """Replicas that can do the work in so many seconds if none is ever idle."""
    decode, screen, deliberate = (float(np.nansum(part)) / seconds for part in work)
    return max(1, math.ceil(max(decode, screen))), max(1, math.ceil(deliberate))


def _cheapest(
    run: Callable[[int, int], Simulated],
    good: Callable[[Simulated], bool],
    price: Price,
    least: tuple[int, int],
) -> tuple[int, int, Simulated]:
    """The good pair with the fewest GPUs, of those the one with the fewest replicas.

    More replicas of either stage never make a plan worse, so for each number of S1's the fewest of S2's are found
    by doubling and halving, until S1's alone cost as much as the best.
    """
    best: tuple[tuple[int, int], int, int, Simulated] | None = None
    screen = least[0]
    plenty = least[1]
    while not good(run(10 * screen + 10, plenty)):
        plenty *= 2
        if plenty > 1 << 20:
            raise PlanError("no number of replicas keeps this; allow more time")
    while best is None or price.gpus(screen, least[1]) <= best[0][0]:
        if good(run(screen, plenty)):
            low, high = least[1] - 1, plenty
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if good(run(screen, middle)) else (middle, high)
            key = price.gpus(screen, high), screen + high
            if best is None or key < best[0]:
                best = key, screen, high, run(screen, high)
            if high == least[1]:
                break
        screen += 1 if best is not None else max(1, screen // 50)
    return best[1:]


def _plan(
    price: Price, screen: int, deliberate: int, found: Simulated, hours: float, delay_s: float
) -> Plan:
    gpus = price.gpus(screen, deliberate)
    return Plan(
        screen=screen,
        deliberate=deliberate,
        gpus=gpus,
        hours=hours,
        cost=gpus * hours * price.gpu_hour,
        delay_s=delay_s,
        screen_busy=found.screen_busy,
        deliberate_busy=found.deliberate_busy,
    )
