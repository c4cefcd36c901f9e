"""How far tau may come down so that S1, deciding alone, is rarely wrong; a promise with a proof.

Knows S1's answers and exact binomial tests. Does not know S2 nor costs (`tradeoff.py`).

The promise: with probability at least 1 - delta over the calibration videos, the *selective risk*

    R(tau) = P(S1 is wrong | familiar and confidence >= tau)

of the chosen tau is at most alpha, for videos drawn as the calibration videos were. The method is Learn
then Test (Angelopoulos et al. 2021, arXiv 2110.01052), Algorithm 1, fixed-sequence testing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from safelens.calibrate import CalibrationError, Floats, Ints, Screening

ALL_TO_S2 = 1.01
"""A tau that no confidence reaches."""


@dataclass(frozen=True)
class Step:
    """One tested threshold: `errors` among the `selected` answers of S1 alone, and its p-value."""

    tau: float
    selected: int
    errors: int
    p: float


@dataclass(frozen=True)
class RiskControl:
    """A tau and the evidence for it.

    Attributes:
        tau: The lowest that was reached.
        alpha: Bound on the selective risk.
        delta: Bound on the probability that it is broken.
        level: What p-values were held against: delta over the number of starts.
        starts: How many answers the first threshold of each sequence selects, at least.
        selected: Answers of S1 alone at `tau`.
        errors: Those of them that are wrong.
        path: All tested thresholds, from the strictest down, with those at which a sequence ended.
    """

    tau: float
    alpha: float
    delta: float
    level: float
    starts: tuple[int, ...]
    selected: int
    errors: int
    path: tuple[Step, ...]


@dataclass(frozen=True)
class ClassRiskControl:
    """A tau for each predicted class.

    Attributes:
        found: By class, for those whose promise can be made.
        refused: By class, why it goes entirely to S2.
        taus: All classes in order to their threshold, `ALL_TO_S2` for the refused.
    """

    found: dict[str, RiskControl]
    refused: dict[str, str]
    taus: dict[str, float]

    @property
    def thresholds(self) -> Floats:
        """The same for :meth:`Screening.stands`, shape (C,)."""
        return np.array(list(self.taus.values()))


def samples_needed(alpha: float, delta: float) -> int:
    """Fewest answers, none wrong, that bound the risk: (1 - alpha)^n <= delta.

    Raises:
        ValueError: alpha or delta is not between 0 and 1.
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: expected a number between 0 and 1")
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def control_risk(screening: Screening, *, alpha: float, delta: float) -> RiskControl:
    """The lowest tau whose selective risk is at most alpha, with probability at least 1 - delta.

    Hypotheses. H(tau): R(tau) > alpha, for every tau in [0, 1], the grid of all numbers, fixed before
    any data is seen. Counts change at the distinct confidences alone, so testing there tests all.

    p-values. Given that n answers are selected, they are n independent draws from the answers with
    confidence >= tau, so their errors are Bin(n, R(tau)); if R(tau) > alpha, then P(p <= u | n) <= u
    for p = P(Bin(n, alpha) <= errors). That holds for every n, hence also without the condition: that n
    is random, and that risk is itself a conditional probability, costs nothing.

    Fixed sequence. Thresholds are tested from a start down, while p <= level. A bad tau is chosen only
    if the first bad one on the way is rejected, which happens with probability at most level; so
    nothing else is paid for the number of tests.

    Starts. Below `samples_needed` answers no p-value is small enough, so the strictest threshold tested
    selects that many. From there alone a single early error would end all, so with enough data there
    are further starts at 2, 4, ... times as many, each with its share of delta (the paper's
    Algorithm 1, with several initializations). Their number depends on how many answers are familiar.
    Where a start falls depends on counts, not on errors. If it is at the first bad tau or above, the
    argument above holds as it is. If it is below, the answers at or above the first bad tau err with
    probability above alpha, and those let in below it no less *where answers of lower confidence are no
    more often right*; errors are then at least binomial, and p still is a valid p-value.

    The probability is that of the whole procedure, over draws of the calibration videos; it needs them
    to be independent of each other, and of how probe, guard and temperature were made.

    Args:
        screening: S1's answers; those that are not familiar are ignored.
        alpha: Bound on the selective risk.
        delta: Bound on the probability that it is broken.

    Raises:
        CalibrationError: too few familiar answers, or too many of the most confident are wrong.
        ValueError: alpha or delta is not between 0 and 1.
    """
    from scipy.stats import binom

    needed, available = samples_needed(alpha, delta), int(screening.familiar.sum())
    if available < needed:
        raise CalibrationError(
            f"{available} familiar answers are too few: to promise a risk of at most {alpha:g} with "
            f"probability {1 - delta:g}, at least {needed} are needed, all right, and more with errors"
        )
    starts = _starts(available, alpha, delta)
    level = delta / len(starts)
    taus, selected, errors = thresholds(screening)
    p = binom.cdf(errors, selected, alpha)
    first = np.searchsorted(selected, starts, side="left")
    tested, reached = np.zeros(len(p), bool), -1
    for start in first:
        stop = start
        while stop < len(p) and p[stop] <= level:
            stop += 1
        tested[start : stop + 1] = True
        if stop > start:
            reached = max(reached, int(stop) - 1)
    if reached < 0:
        seen = ", ".join(f"{errors[i]} of the {selected[i]} most confident" for i in first)
        raise CalibrationError(
            f"no tau keeps the risk at most {alpha:g} with probability {1 - delta:g}: of the familiar "
            f"answers, {seen} are wrong; more videos help only where that share is below {alpha:g}, "
            "else a larger alpha or a better S1"
        )
    return RiskControl(
        tau=float(taus[reached]),
        alpha=alpha,
        delta=delta,
        level=level,
        starts=starts,
        selected=int(selected[reached]),
        errors=int(errors[reached]),
        path=tuple(
            Step(float(taus[i]), int(selected[i]), int(errors[i]), float(p[i]))
            for i in np.flatnonzero(tested)
        ),
    )


def control_class_risk(
    screening: Screening, labels: Sequence[str], *, alpha: float, delta: float
) -> ClassRiskControl:
    """:func:`control_risk` on the answers of each predicted class, at delta / C (Bonferroni).

    With probability at least 1 - delta the risk among S1's own answers of *every* class is at most
    alpha. All C classes share delta, also those that turn out to be refused: which ones do is not known
    before the data is seen.

    Args:
        screening: S1's answers.
        labels: Names of the C classes.
        alpha: Bound on every class's selective risk.
        delta: Bound on the probability that any is broken.

    Raises:
        CalibrationError: no class's promise can be made; names each with the reason.
        ValueError: alpha or delta is not between 0 and 1.
    """
    found: dict[str, RiskControl] = {}
    refused: dict[str, str] = {}
    for index, name in enumerate(labels):
        part = screening.take(screening.predicted == index)
        try:
            found[name] = control_risk(part, alpha=alpha, delta=delta / len(labels))
        except CalibrationError as error:
            refused[name] = str(error)
    if not found:
        listed = "\n  ".join(f"{name}: {why}" for name, why in refused.items())
        raise CalibrationError(f"no class's risk can be bounded:\n  {listed}")
    taus = {name: found[name].tau if name in found else ALL_TO_S2 for name in labels}
    return ClassRiskControl(found, refused, taus)


def thresholds(screening: Screening) -> tuple[Floats, Ints, Ints]:
    """Distinct confidences of the familiar answers, falling, each with what it selects.

    Returns:
        Thresholds, answers at or above each, and errors among those; shapes (M,).
    """
    own = screening.take(screening.familiar)
    taus, place, counts = np.unique(own.confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(place[~own.right], minlength=len(taus))
    return taus[::-1], counts[::-1].cumsum(), wrong[::-1].cumsum()


def selective_risk(screening: Screening, tau: float | Floats) -> float:
    """Share of wrong ones among S1's own answers; of the worst class if `tau` is of shape (C,).

    0 where S1 answers nothing.
    """
    own = screening.take(screening.stands(tau))
    if np.ndim(tau) == 0:
        return float(np.mean(~own.right)) if len(own) else 0.0
    present = np.unique(own.predicted)
    return max((float(np.mean(~own.right[own.predicted == c])) for c in present), default=0.0)


@dataclass(frozen=True)
class Resampled:
    """How often a promise held.

    Attributes:
        held: Share of resamples in which the risk was at most alpha, or nothing was promised.
        refused: Share in which nothing was promised.
        risks: Of every resample that chose a tau.
        shares: Share of the pool that S1 decides alone, likewise.
    """

    held: float
    refused: float
    risks: tuple[float, ...]
    shares: tuple[float, ...]


def check_promise(
    pool: Screening,
    choose: Callable[[Screening], float | Floats],
    *,
    alpha: float,
    size: int,
    resamples: int = 200,
    seed: int = 0,
    risk: Callable[[float | Floats], float] | None = None,
) -> Resampled:
    """Choose tau on random parts of a pool and see how often the risk is what was promised.

    Args:
        pool: S1's answers.
        choose: What is checked, such as `lambda part: control_risk(part, ...).tau`.
        alpha: The promised bound.
        size: Answers in a calibration part, drawn without replacement.
        resamples: How many parts.
        seed: Of the draw.
        risk: True risk of a tau, where it is known. By default it is measured on the rest of the pool,
            whose own chance adds to what is seen: the smaller the rest, the more often a true risk just
            below alpha looks like one above.

    Raises:
        ValueError: the pool is not larger than `size`.
    """
    if not 0 < size < len(pool):
        raise ValueError(f"size={size}: expected 1 to {len(pool) - 1}, fewer than the pool")
    random = np.random.default_rng(seed)
    risks: list[float] = []
    shares: list[float] = []
    for _ in range(resamples):
        order = random.permutation(len(pool))
        try:
            tau = choose(pool.take(order[:size]))
        except CalibrationError:
            continue
        risks.append(selective_risk(pool.take(order[size:]), tau) if risk is None else risk(tau))
        shares.append(float(pool.stands(tau).mean()))
    broken = sum(r > alpha for r in risks)
    refused = resamples - len(risks)
    return Resampled(1 - broken / resamples, refused / resamples, tuple(risks), tuple(shares))


def _starts(available: int, alpha: float, delta: float) -> tuple[int, ...]:
    """As many starts, each selecting twice the last, as `available` answers allow; at least one."""
    many = 1
    while samples_needed(alpha, delta / (many + 1)) * 2**many <= available:
        many += 1
    first = samples_needed(alpha, delta / many)
    return tuple(first * 2**k for k in range(many))
