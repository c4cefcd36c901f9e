"""What a tau costs and how often the whole cascade is right; the best tau for a bound on either.

Knows the answers of both stages and what they cost. Promises nothing of S1's own decisions: `risk.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from safelens.calibrate import Bools, CalibrationError, Floats, Screening
from safelens.risk import ALL_TO_S2, samples_needed, thresholds

SEARCHED = 20
"""Most thresholds among which a bound on accuracy is searched; each takes its share of delta."""


@dataclass(frozen=True)
class OperatingPoint:
    """The cascade at one tau.

    Attributes:
        tau: The threshold.
        escalated: Share of videos that go to S2.
        cost: Of the cascade, as a share of S2 on everything: sum(s1 + escalated * s2) / sum(s1 + s2).
        right: Videos on which the stage that decides is right.
        count: All videos.
    """

    tau: float
    escalated: float
    cost: float
    right: int
    count: int

    @property
    def accuracy(self) -> float:
        """Share of all videos that is right."""
        return self.right / self.count


def operating_points(
    screening: Screening, s2_right: ArrayLike, *, s1_cost: ArrayLike, s2_cost: ArrayLike
) -> tuple[OperatingPoint, ...]:
    """The cascade at every distinct confidence, and with all to S2; from the strictest tau down.

    Videos that are not familiar go to S2 (a bundle that refuses them is judged on familiar ones alone).

    Args:
        screening: S1's answers on N videos.
        s2_right: Whether S2 is right, shape (N,), bool; what is undecided or failed is not.
        s1_cost: Of S1, a number or shape (N,), in any unit.
        s2_cost: What S2 costs on top, likewise in the same unit.

    Raises:
        CalibrationError: there is no video.
        ValueError: shapes differ, or costs are negative or all zero.
    """
    n = len(screening)
    s2, second, total = _checked(n, s2_right, s1_cost, s2_cost)
    # S1 decides the first k of the familiar ones by falling confidence; sums[k] is what that changes.
    own = np.flatnonzero(screening.familiar)
    own = own[np.argsort(-screening.confidence[own])]
    gained = _sums(screening.right[own].astype(int) - s2[own])
    saved = _sums(second[own])
    taus, selected, _ = thresholds(screening)
    return tuple(
        OperatingPoint(
            tau=float(tau),
            escalated=1 - int(k) / n,
            cost=float(1 - saved[k] / total),
            right=int(s2.sum() + gained[k]),
            count=n,
        )
        for tau, k in zip((ALL_TO_S2, *taus), (0, *selected), strict=True)
    )


def operating_point(
    screening: Screening, s2_right: ArrayLike, tau: float, *, s1_cost: ArrayLike, s2_cost: ArrayLike
) -> OperatingPoint:
    """The cascade at a tau that was chosen on other videos; as in :func:`operating_points`.

    Args:
        screening: S1's answers on N videos.
        s2_right: Whether S2 is right, shape (N,), bool.
        tau: The threshold.
        s1_cost: Of S1, a number or shape (N,).
        s2_cost: What S2 costs on top, likewise.

    Raises:
        CalibrationError: there is no video.
        ValueError: shapes differ, or costs are negative or all zero.
    """
    s2, second, total = _checked(len(screening), s2_right, s1_cost, s2_cost)
    own = screening.stands(tau)
    return OperatingPoint(
        tau=tau,
        escalated=float(1 - own.mean()),
        cost=float(1 - second[own].sum() / total),
        right=int(np.where(own, screening.right, s2).sum()),
        count=len(screening),
    )


def tau_for_cost(points: Sequence[OperatingPoint], *, most: float) -> OperatingPoint:
    """The most accurate point that costs at most `most`; of equal ones the cheapest.

    Its accuracy is the best of many on these very videos, hence flattering; measure it on others.

    Args:
        points: What :func:`operating_points` gave.
        most: Share of the cost of S2 on everything.

    Raises:
        CalibrationError: even the cheapest tau costs more; says how much.
    """
    within = [p for p in points if p.cost <= most]
    if not within:
        least = min(points, key=lambda p: p.cost)
        raise CalibrationError(
            f"no tau costs at most {most:g} of S2 on everything: the cheapest, {least.tau:g}, costs "
            f"{least.cost:.3f}, with {least.escalated:.1%} of {least.count} videos to S2"
        )
    return max(within, key=lambda p: (p.right, -p.cost))


def tau_for_accuracy(
    points: Sequence[OperatingPoint], *, least: float, delta: float
) -> tuple[OperatingPoint, float]:
    """The cheapest point whose accuracy is at least `least`, with probability at least 1 - delta.

    Of the points at most `SEARCHED` are looked at, evenly spaced in how many videos S1 decides. That
    grid depends on confidences, not on what is right. Each point's lower bound is that of Clopper and
    Pearson (1934), the delta / K quantile of Beta(k, n - k + 1), so by Bonferroni all K hold together.

    Args:
        points: What :func:`operating_points` gave.
        least: Accuracy that is to be reached.
        delta: Bound on the probability that it is not.

    Returns:
        The point and its lower bound.

    Raises:
        CalibrationError: no lower bound reaches `least`; says what was reached.
        ValueError: `least` or `delta` is not between 0 and 1.
    """
    from scipy.stats import beta

    stands = np.array([1 - p.escalated for p in points])
    grid = np.unique(np.searchsorted(stands, np.linspace(0, stands[-1], SEARCHED) - 1e-9))
    searched = [points[i] for i in grid]
    needed = samples_needed(1 - least, delta / len(searched))
    bounds = [
        float(beta.ppf(delta / len(searched), p.right, p.count - p.right + 1)) if p.right else 0.0
        for p in searched
    ]
    reached = [(p, b) for p, b in zip(searched, bounds, strict=True) if b >= least]
    if not reached:
        best, bound = max(zip(searched, bounds, strict=True), key=lambda pair: pair[1])
        raise CalibrationError(
            f"no tau is accurate to {least:g} with probability {1 - delta:g}: at best, at tau "
            f"{best.tau:g}, {best.right} of {best.count} are right, at least {bound:.4f}; even without "
            f"an error, {needed} videos are needed"
        )
    return min(reached, key=lambda pair: pair[0].cost)


def _checked(
    n: int, s2_right: ArrayLike, s1_cost: ArrayLike, s2_cost: ArrayLike
) -> tuple[Bools, Floats, float]:
    """Whether S2 is right and what it costs, shapes (n,), and what all cost together."""
    s2 = np.asarray(s2_right, bool)
    first, second = (np.broadcast_to(np.asarray(c, float), (n,)) for c in (s1_cost, s2_cost))
    if s2.shape != (n,):
        raise ValueError(f"expected s2_right of shape ({n},), got {s2.shape}")
    if not n:
        raise CalibrationError("operating points of no videos; at least one is needed")
    total = float(first.sum() + second.sum())
    if not (first.min() >= 0 and second.min() >= 0 and 0 < total < np.inf):
        raise ValueError("expected costs of 0 or more, finite and not all 0")
    return s2, second, total


def _sums(values: ArrayLike) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values)))
