"""The cascade at every tau from the stored answers of its two stages; no model is run.

Knows which of two answers `routing.route` gives at a tau, and what accuracy and cost follow. Knows nothing
of thresholds by class, and chooses no tau: `tradeoff.py` and `risk.py` do.

A video's answer changes once, at S1's confidence. So two routings, with everything that may stand standing
and with nothing standing, hold the answers at all taus. An answer of S2 costs screen and captions too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import Cases, EvaluationError, Truth, named, pair
from safelens.evaluate.cost import total_seconds
from safelens.evaluate.routing import OutsideDomain, route
from safelens.policy import Policy
from safelens.risk import ALL_TO_S2
from safelens.thresholds import Thresholds

GRID = (*(k / 20 for k in range(21)), ALL_TO_S2)
"""From all that S1 may decide to nothing that it may."""

FIGURES = ("avg_acc", "accuracy", "f1", "seconds", "gflops")


@dataclass(frozen=True)
class Point:
    """The cascade at one tau.

    Attributes:
        tau: Confidence at or above which S1's answer stands; None for S2 on everything.
        escalated: Share of videos whose answer is S2's.
        undecided: Share of videos that nothing was decided on, for whatever reason.
        avg_acc: Unweighted mean accuracy of the classes that occur.
        accuracy: Share of videos answered rightly.
        f1: Of the flag, whether a video violates anything; None without a violating video.
        seconds: Mean per video.
        gflops: Mean per video, in units of 1e9 floating-point operations.
        relative: Each of the last five as a multiple of S2's on everything; None where either is unknown
            or that is 0.
    """

    tau: float | None
    escalated: float
    undecided: float
    avg_acc: float
    accuracy: float
    f1: float | None
    seconds: float | None
    gflops: float | None
    relative: dict[str, float | None]


@dataclass(frozen=True)
class Sweep:
    """The cascade over tau.

    Attributes:
        videos: With a known truth.
        timed: Videos that the costs are of: those on which neither stage failed.
        outside_domain: What happens to a clip that the domain guard does not know.
        points: By rising tau: those asked for and each confidence that occurs.
        everything: S2 on every video, whatever the domain guard says.
    """

    videos: int
    timed: int
    outside_domain: OutsideDomain
    points: tuple[Point, ...]
    everything: Point

    def at(self, tau: float) -> Point:
        """The point of a tau that was asked for. Raises KeyError."""
        for point in self.points:
            if point.tau == tau:
                return point
        raise KeyError(tau)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without NaN."""
        return asdict(self)


def sweep(
    records: Sequence[Record],
    screen: Mapping[str, Answer],
    deliberate: Mapping[str, Answer],
    policy: Policy,
    *,
    outside_domain: OutsideDomain = "escalate",
    taus: Sequence[float] = GRID,
    truth: Truth = "true_labels",
) -> Sweep:
    """The cascade at the given taus and at every distinct confidence of S1.

    Args:
        records: What was to be answered.
        screen: S1's answers by the record's id.
        deliberate: S2's answers on the same records.
        policy: Whose categories all speak of.
        outside_domain: What happens to a clip that the domain guard does not know.
        taus: Thresholds, none below 0.
        truth: Which labels of a record hold.

    Raises:
        EvaluationError: one stage answered records that the other did not, or as `pair`.
        ValueError: a tau is negative or no number.
    """
    if not all(tau >= 0 for tau in taus):
        raise ValueError(f"expected taus of 0 or more, got {list(taus)}")
    if differing := screen.keys() ^ deliberate.keys():
        raise EvaluationError(
            f"one stage alone has answers on {named(differing)}; run both stages on all records"
        )
    answers = [
        {
            name: route(screen[name], deliberate[name], Thresholds(tau), outside_domain)
            for name in screen
        }
        for tau in (0.0, math.inf)
    ]
    standing, escalated = (
        _columns(pair(records, found, policy, truth=truth), deliberate) for found in answers
    )
    cases = pair(records, deliberate, policy, truth=truth)
    second = _columns(cases, deliberate)
    found = [screen.get(case.record.id) for case in cases]
    known = [None if answer is None else answer.confidence for answer in found]
    # Without a confidence both routings are the same.
    confidence = np.array([0.0 if c is None else c for c in known])
    timed = ~np.isnan(standing.seconds + escalated.seconds + second.seconds)
    truths = _Truths.of(cases, timed)
    everything = truths.point(None, second, None)
    points = tuple(
        truths.point(tau, standing.where(confidence >= tau, escalated), everything)
        for tau in sorted({*map(float, taus), *(c for c in known if c is not None)})
    )
    return Sweep(len(cases), int(timed.sum()), outside_domain, points, everything)


Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Columns:
    """What N videos' answers come to, shape (N,) each; unknown costs are NaN."""

    right: Bools
    flagged: Bools
    decided: Bools
    escalated: Bools
    seconds: Floats
    gflops: Floats

    def where(self, mine: Bools, other: _Columns) -> _Columns:
        """Own values where `mine`, else the other's."""
        return _Columns(
            **{name: np.where(mine, own, vars(other)[name]) for name, own in vars(self).items()}
        )


def _columns(cases: Cases, deliberate: Mapping[str, Answer]) -> _Columns:
    answers = [case.answer for case in cases]
    return _Columns(
        right=np.array([case.right for case in cases]),
        flagged=np.array([bool(case.flags) for case in cases]),
        decided=np.array([case.decided for case in cases]),
        escalated=np.array([a is not None and a is deliberate[a.id] for a in answers]),
        seconds=_or_nan([None if a is None else total_seconds(a) for a in answers]),
        gflops=_or_nan([None if a is None else a.gflops for a in answers]),
    )


@dataclass(frozen=True)
class _Truths:
    """What N videos are: classes as rows of equal weight, shape (K, N); violating and timed, shape (N,)."""

    weights: Floats
    violating: Bools
    timed: Bools

    @classmethod
    def of(cls, cases: Cases, timed: Bools) -> _Truths:
        labels = np.array([case.label for case in cases])
        members = [labels == name for name in cases.policy.labels if (labels == name).any()]
        weights = np.array([inside / inside.sum() for inside in members])
        return cls(weights, np.array([bool(case.truth) for case in cases]), timed)

    def point(self, tau: float | None, c: _Columns, everything: Point | None) -> Point:
        hits = int((c.flagged & self.violating).sum())
        positives, flagged = int(self.violating.sum()), int(c.flagged.sum())
        figures = {
            "avg_acc": float((self.weights @ c.right).mean()),
            "accuracy": float(c.right.mean()),
            "f1": 2 * hits / (positives + flagged) if positives else None,
            "seconds": _mean(c.seconds[self.timed]),
            "gflops": _mean(c.gflops[self.timed]),
        }
        whole = figures if everything is None else {n: getattr(everything, n) for n in FIGURES}
        return Point(
            tau=tau,
            escalated=float(c.escalated.mean()),
            undecided=float((~c.decided).mean()),
            **figures,  # type: ignore[arg-type]
            relative={n: _ratio(value, whole[n]) for n, value in figures.items()},
        )


def _or_nan(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values])


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) and not np.isnan(values).any() else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
