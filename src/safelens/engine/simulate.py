"""Videos through S1 and S2 on so many replicas: how long each waits, how busy they are.

Knows arrivals, service times and queues, first come first served. Knows no models and no prices.

A discrete-event simulation. A replica of S1 decodes one video while its model works on another that is decoded; one of
S2 works on one at a time. What batches gain, and what parts of a replica take from each other where they share its
cores, is in the seconds a video, which are measured so. S2's queue is fed by S1's departures.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Simulated:
    """What happened to some videos.

    Attributes:
        delays: seconds from arrival to verdict, shape (N,), in the order of arrival.
        end: when the last verdict was there, seconds from the start.
        screen_busy: share of S1's replicas that worked, decoding or the models, whichever worked more; from the
            start to the end of S1's work.
        deliberate_busy: the same of S2's; 0 where nothing came to it.
    """

    delays: Times
    end: float
    screen_busy: float
    deliberate_busy: float


def poisson(rate: float, count: int, rng: np.random.Generator) -> Times:
    """Arrivals at a constant rate, shape (count,), seconds.

    Args:
        rate: videos a second.
        count: how many.
        rng: source of chance.
    """
    return np.cumsum(rng.exponential(1 / rate, count))


def by_the_hour(curve: Sequence[float], rng: np.random.Generator) -> Times:
    """Arrivals of a Poisson process whose rate changes with the hour, sorted, seconds.

    Args:
        curve: videos of each hour, one after the other.
        rng: source of chance.
    """
    hours = [
        np.sort(rng.uniform(3600.0 * k, 3600.0 * (k + 1), rng.poisson(videos)))
        for k, videos in enumerate(curve)
    ]
    return np.concatenate(hours)


def simulate(
    arrivals: Times,
    decode_s: Times,
    screen_s: Times,
    deliberate_s: Times,
    *,
    screen: int,
    deliberate: int,
) -> Simulated:
    """Run videos through both stages.

    Args:
        arrivals: seconds from the start, shape (N,), sorted.
        decode_s: seconds of decoding for each video, shape (N,).
        screen_s: seconds of S1's model for each, shape (N,).
        deliberate_s: seconds of S2 for each, shape (N,); NaN where S1's answer stands.
        screen: replicas of S1.
        deliberate: replicas of S2.

    Raises:
        ValueError: there are no videos, or no replicas for videos that need them.
    """
    if not len(arrivals):
        raise ValueError("no videos: nothing to simulate")
    unsure = ~np.isnan(deliberate_s)
    if screen < 1 or (deliberate < 1 and unsure.any()):
        raise ValueError(f"{screen} replicas of S1 and {deliberate} of S2: expected 1 or more")
    decoded = _station(arrivals, decode_s, screen)
    screened = _after(decoded, screen_s, screen)
    ended = screened.copy()
    deliberate_busy = 0.0
    if unsure.any():
        ended[unsure] = _after(screened[unsure], deliberate_s[unsure], deliberate)
        span = ended[unsure].max() - screened[unsure].min()
        deliberate_busy = deliberate_s[unsure].sum() / (deliberate * span)
    worked = max(decode_s.sum(), screen_s.sum())
    screen_busy = worked / (screen * (screened.max() - arrivals[0]))
    return Simulated(
        ended - arrivals, float(ended.max()), float(screen_busy), float(deliberate_busy)
    )


def _station(arrivals: Times, seconds: Times, servers: int) -> Times:
    """When each of some customers leaves a first-come-first-served queue with several servers."""
    free = [0.0] * servers
    ended = np.empty(len(arrivals))
    for k, (arrival, work) in enumerate(zip(arrivals.tolist(), seconds.tolist(), strict=True)):
        end = max(arrival, free[0]) + work
        heapq.heapreplace(free, end)
        ended[k] = end
    return ended


def _after(left: Times, seconds: Times, servers: int) -> Times:
    """The same of a queue that is in the order in which its customers left another one."""
    order = np.argsort(left, kind="stable")
    ended = np.empty(len(left))
    ended[order] = _station(left[order], seconds[order], servers)
    return ended
