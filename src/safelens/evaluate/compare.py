"""Whether one system is better than another on the same videos, or only luckier.

Knows paired tests of right and wrong. Knows nothing of how systems answer, or of figures that are not
accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import EvaluationError, Truth, named, pair
from safelens.policy import Policy

RESAMPLES = 10_000
"""Of the bootstrap. Bounds of a 95 % interval then vary from seed to seed by 0.03 standard errors of what
they bound (0.0267 for a normal difference)."""

LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Paired:
    """Two systems on the same videos of one class, or of all.

    Attributes:
        videos: How many.
        first_only: Videos on which the first system alone is right.
        second_only: Videos on which the second alone is right.
        first: Accuracy of the first.
        second: Accuracy of the second.
        p_value: Of `mcnemar` on the discordant videos.
    """

    videos: int
    first_only: int
    second_only: int
    first: float
    second: float
    p_value: float


@dataclass(frozen=True)
class PairedClass(Paired):
    """The same of one class.

    Attributes:
        difference: First accuracy minus second.
        interval: Of that difference, from the bootstrap.
        p_holm: `p_value`, corrected by `holm` for there being several classes.
    """

    difference: float
    interval: tuple[float, float]
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """The first system against the second.

    Attributes:
        overall: All videos; its test is of accuracy, in which frequent classes weigh more.
        first_avg_acc: Unweighted mean of the first system's class accuracies.
        second_avg_acc: The same of the second.
        difference: First Avg ACC minus second.
        interval: Of that difference, from the bootstrap.
        level: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        classes: Each class that occurs, in the policy's order.
        left_out: Videos whose truth is not known; in no figure.
    """

    overall: Paired
    first_avg_acc: float
    second_avg_acc: float
    difference: float
    interval: tuple[float, float]
    level: float
    resamples: int
    seed: int
    classes: dict[str, PairedClass]
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def compare(
    records: Sequence[Record],
    first: Mapping[str, Answer],
    second: Mapping[str, Answer],
    policy: Policy,
    *,
    truth: Truth = "true_labels",
    seed: int = 0,
) -> Comparison:
    """Compares the single labels of two systems, video by video.

    Right and wrong, and a video's class, are those of `metrics.single_label`: whatever is not a decided
    answer is wrong, and so is, for both, a record that both have no answer for.

    Args:
        records: What was to be answered.
        first: Answers of one system by the record's id.
        second: Answers of the other.
        policy: Whose categories all speak of.
        truth: Which labels of a record hold.
        seed: Of the bootstrap.

    Raises:
        EvaluationError: One system answered records that the other has no answer for, of any outcome: they
            were not run on the same videos. Or as `pair`.
    """
    ids = {record.id for record in records}
    if (ids & first.keys()) != (ids & second.keys()):
        lacking = {
            "first": ids & (second.keys() - first.keys()),
            "second": ids & (first.keys() - second.keys()),
        }
        raise EvaluationError(
            "the systems were run on different records: "
            + "; ".join(
                f"the {name} has no answer on {named(x)}" for name, x in lacking.items() if x
            )
            + "; run both on all of them"
        )
    a, b = (pair(records, answers, policy, truth=truth) for answers in (first, second))
    right: dict[str, list[tuple[bool, bool]]] = {name: [] for name in policy.labels}
    for case, other in zip(a, b, strict=True):
        right[case.label].append((case.right, other.right))
    pairs = {name: _paired(found) for name, found in right.items() if found}
    drawn = bootstrap_differences(
        np.array([(p.videos, p.first_only, p.second_only) for p in pairs.values()]), seed=seed
    )
    corrected = holm({name: p.p_value for name, p in pairs.items()})
    averages = [
        float(np.mean([getattr(p, x) for p in pairs.values()])) for x in ("first", "second")
    ]
    return Comparison(
        overall=_paired([both for found in right.values() for both in found]),
        first_avg_acc=averages[0],
        second_avg_acc=averages[1],
        difference=averages[0] - averages[1],
        interval=_interval(drawn.mean(axis=1)),
        level=LEVEL,
        resamples=RESAMPLES,
        seed=seed,
        classes={
            name: PairedClass(
                **vars(p),
                difference=p.first - p.second,
                interval=_interval(drawn[:, i]),
                p_holm=corrected[name],
            )
            for i, (name, p) in enumerate(pairs.items())
        },
        left_out=len(a.left_out),
    )


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided p-value of the exact McNemar test (McNemar 1947, Psychometrika 12, 153-157).

    If both systems are right equally often, `first_only` of the discordant videos is binomial with
    probability 1/2. Without discordant videos nothing speaks against that: 1.

    Args:
        first_only: Videos on which the first system alone is right.
        second_only: Videos on which the second alone is right.
    """
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant, 0.5).pvalue) if discordant else 1.0


def bootstrap_differences(table: NDArray[np.int64], *, seed: int) -> NDArray[np.float64]:
    """Differences of class accuracies on resampled videos, each class to its own size.

    The paired bootstrap, stratified (Efron & Tibshirani 1993, An Introduction to the Bootstrap, sections
    6.2 and 8.3): n videos of a class are drawn with replacement, each with both systems' answers. The
    difference depends on the draw only by how many of it one system alone has right, and those counts are
    multinomial, so they are drawn at once.

    Args:
        table: Videos, those that the first system alone has right, and those that the second alone has
            right, of each of K classes; shape (K, 3).
        seed: Of the draws.

    Returns:
        First accuracy minus second, shape (RESAMPLES, K).
    """
    n, first, second = table.T
    shares = np.stack([first, second, n - first - second], axis=1) / n[:, None]
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=(RESAMPLES, len(n)))
    return np.asarray((drawn[..., 0] - drawn[..., 1]) / n, dtype=np.float64)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    The i-th smallest of m is multiplied by m - i + 1, and raised to the one before it where it is smaller. A
    hypothesis rejected at level alpha then belongs to a family with an error rate of at most alpha.

    Args:
        p_values: By name.

    Returns:
        Corrected p-values, at most 1, in the order given.
    """
    corrected, least = dict(p_values), 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - i) * p_values[name]))
        corrected[name] = least
    return corrected


def _paired(right: list[tuple[bool, bool]]) -> Paired:
    first_only = sum(a and not b for a, b in right)
    second_only = sum(b and not a for a, b in right)
    return Paired(
        videos=len(right),
        first_only=first_only,
        second_only=second_only,
        first=sum(a for a, _ in right) / len(right),
        second=sum(b for _, b in right) / len(right),
        p_value=mcnemar(first_only, second_only),
    )


def _interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval (Efron & Tibshirani 1993, section 13.3)."""
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
