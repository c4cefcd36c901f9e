"""S1's answers as arrays, and the temperature that makes its confidence honest.

Knows probabilities and true classes. Runs no model, and does not know how tau is chosen: what may be
left to S1 alone is in `risk.py`, what it costs in `tradeoff.py`, how honest it is in `reliability.py`.

Temperature and tau want different videos: a temperature that was fitted on the very videos that tau is
tested on has seen their truth, and no promise about tau holds exactly any more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safelens.policy import SAFE

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FEWEST = 50
"""Fewest videos that a temperature is fitted on."""
LEAST, MOST = 0.05, 20.0
"""Range that the temperature is looked for in."""
_FLOOR = float(np.finfo(np.float32).tiny)


class CalibrationError(ValueError):
    """The data cannot carry what was asked for; the message says what is missing, and how much."""


@dataclass(frozen=True, eq=False)
class Screening:
    """S1's answers on N videos.

    Attributes:
        confidence: Probability of the answer, after the temperature, shape (N,), in [0, 1].
        predicted: Index of the answered class, shape (N,).
        right: Whether the answer is right, shape (N,).
        familiar: Whether the domain guard knows the video, shape (N,).

    Raises:
        ValueError: shapes differ, or a confidence is no probability.
    """

    confidence: Floats
    predicted: Ints
    right: Bools
    familiar: Bools

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.confidence, self.predicted, self.right, self.familiar)}
        if len(shapes) != 1 or self.confidence.ndim != 1:
            raise ValueError(f"expected four arrays of one shape (N,), got shapes {sorted(shapes)}")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise ValueError("expected confidences in [0, 1]; some are outside or no number")

    @classmethod
    def from_probabilities(cls, p: ArrayLike, truth: ArrayLike, familiar: ArrayLike) -> Self:
        """Take the most probable class as answer, right if it is one of the true classes.

        Args:
            p: Probabilities after the temperature, shape (N, C).
            truth: Which classes hold, shape (N, C), bool; see :func:`class_sets`.
            familiar: Whether the domain guard knows the video, shape (N,), bool.

        Raises:
            ValueError: shapes differ, rows do not sum to 1, or a row of `truth` is empty.
        """
        p, truth = _checked(p, truth)
        predicted = p.argmax(1)
        rows = np.arange(len(p))
        return cls(
            p[rows, predicted], predicted, truth[rows, predicted], np.asarray(familiar, bool)
        )

    def __len__(self) -> int:
        return len(self.confidence)

    def take(self, rows: ArrayLike) -> Self:
        """The answers at these indices, or where this mask of shape (N,) is true."""
        rows = np.asarray(rows)
        return type(self)(
            self.confidence[rows], self.predicted[rows], self.right[rows], self.familiar[rows]
        )

    def stands(self, tau: ArrayLike) -> Bools:
        """Which answers S1 gives alone, as in the cascade: familiar, and confidence >= tau.

        Args:
            tau: One threshold, or one for each predicted class, shape (C,).
        """
        tau = np.asarray(tau, float)
        return self.familiar & (self.confidence >= (tau[self.predicted] if tau.ndim else tau))


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature, and the mean negative log-likelihood in nats without and with it."""

    temperature: float
    nll_before: float
    nll_after: float


def class_sets(flags: Sequence[Collection[str]], labels: Sequence[str]) -> Bools:
    """True classes as a matrix: the violated categories, or "safe" where there is none.

    Args:
        flags: Of each video, the ids of the violated categories.
        labels: The classes in the order of S1's probabilities, with "safe".

    Returns:
        Shape (N, C).

    Raises:
        ValueError: an id is no class.
    """
    unknown = sorted(set().union(*flags) - set(labels))
    if unknown:
        raise ValueError(f"{unknown} are no classes; the classes are {list(labels)}")
    rows = [[name in (held or (SAFE,)) for name in labels] for held in flags]
    return np.array(rows, bool).reshape(len(flags), len(labels))


def tempered(p: ArrayLike, temperature: float) -> Floats:
    """softmax(log p / T): what softmax(z / T) is, if p = softmax(z).

    log p is z but for a constant of the row, which softmax does not see. If p itself was made with a
    temperature T0, the result is that of T0 * T. Zeros, which a softmax in float32 gives for logits
    far behind, count as its smallest normal number, 1.2e-38.

    Args:
        p: Probabilities, shape (N, C).
        temperature: T > 0; above 1 softens.

    Returns:
        Shape (N, C), rows sum to 1.
    """
    return np.exp(_log_tempered(_log(np.asarray(p, float)), temperature))


def under_shares(p: ArrayLike, learned: ArrayLike, wanted: ArrayLike) -> Floats:
    """Probabilities where classes are as common as `wanted` says, not as in what they were learned from.

    p_c * wanted_c / learned_c, divided by their sum: Bayes' rule with another prior, the likelihoods being the
    same (Saerens, Latinne and Decaestecker, 2002).

    Args:
        p: Probabilities, shape (N, C).
        learned: Shares of the classes in training, shape (C,), none 0.
        wanted: Shares where the probabilities are used, shape (C,).

    Returns:
        Shape (N, C), rows sum to 1.

    Raises:
        ValueError: a share is negative, or one of `learned` is 0.
    """
    old, new = np.asarray(learned, float), np.asarray(wanted, float)
    if not (old > 0).all() or not (new >= 0).all():
        raise ValueError(f"shares must be positive, those wanted at least 0: {old}, {new}")
    found = np.asarray(p, float) * new / old
    return np.asarray(found / found.sum(1, keepdims=True))


def nll(p: ArrayLike, truth: ArrayLike) -> float:
    """Mean negative log-likelihood in nats, -log of the sum of p over the video's true classes.

    S1 gives one class, and it is right if it is any of the true ones, so a set of classes gets the
    probability of that very event. The alternative, cross-entropy against equal shares, calls a
    confidence of 0.95 in one of two true classes wrong, and would teach the temperature to halve it.

    Args:
        p: Probabilities, shape (N, C).
        truth: Which classes hold, shape (N, C), bool, none empty.

    Raises:
        ValueError: shapes differ, rows do not sum to 1, or a row of `truth` is empty.
    """
    p, truth = _checked(p, truth)
    return _mean_nll(_log_tempered(_log(p), 1.0), truth)


def fit_temperature(p: ArrayLike, truth: ArrayLike, labels: Sequence[str]) -> TemperatureFit:
    """The T that minimizes :func:`nll` of :func:`tempered` (Guo et al. 2017, section 4.2).

    For single classes the NLL is convex in 1/T; for sets it need not be, so the best of a coarse grid
    over log T brackets the search.

    Args:
        p: S1's probabilities as stored, shape (N, C).
        truth: Which classes hold, shape (N, C), bool, none empty.
        labels: Names of the C classes.

    Raises:
        CalibrationError: fewer than `FEWEST` videos, a class of which there is none, or a best T at an
            end of its range: the answers are all right, or unrelated to the truth.
        ValueError: shapes differ, rows do not sum to 1, or a row of `truth` is empty.
    """
    from scipy.optimize import minimize_scalar

    p, truth = _checked(p, truth)
    if len(labels) != p.shape[1]:
        raise ValueError(f"{len(labels)} labels for {p.shape[1]} classes")
    absent = [name for name, held in zip(labels, truth.T, strict=True) if not held.any()]
    if len(p) < FEWEST or absent:
        without = f"; there is none of {', '.join(absent)}" if absent else ""
        raise CalibrationError(
            f"{len(p)} videos are too few to fit a temperature{without}: at least {FEWEST} are needed, "
            "with at least one of every class"
            if len(p) < FEWEST
            else f"no temperature can be fitted{without}: at least one video of every class is needed"
        )
    logs = _log(p)

    def loss(log_t: float) -> float:
        return _mean_nll(_log_tempered(logs, math.exp(log_t)), truth)

    grid = np.linspace(math.log(LEAST), math.log(MOST), 41)
    best = int(np.argmin([loss(t) for t in grid]))
    if best in (0, len(grid) - 1):
        raise CalibrationError(
            f"the answers on these {len(p)} videos fit best at the end of the range, T = "
            f"{math.exp(grid[best]):g}: "
            + (
                "(nearly) all are right, so that more certainty never costs; keep T = 1, or add videos "
                "that S1 gets wrong"
                if best == 0
                else "they tell nothing of the truth; check that both are of the same videos"
            )
        )
    found = minimize_scalar(
        loss, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-8}
    )
    return TemperatureFit(math.exp(found.x), loss(0.0), float(found.fun))


def _checked(p: ArrayLike, truth: ArrayLike) -> tuple[Floats, Bools]:
    p, truth = np.asarray(p, float), np.asarray(truth, bool)
    if p.ndim != 2 or p.shape != truth.shape:
        raise ValueError(f"expected p and truth of one shape (N, C), got {p.shape}, {truth.shape}")
    if not ((p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-3)):
        raise ValueError("expected rows of probabilities that sum to 1")
    if not truth.any(1).all():
        raise ValueError(f"row {int(truth.any(1).argmin())} of truth has no class; expected 'safe'")
    return p, truth


def _log(p: Floats) -> Floats:
    return np.log(np.maximum(p, _FLOOR))


def _log_tempered(logs: Floats, temperature: float) -> Floats:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}: expected a number above 0")
    z = logs / temperature
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def _mean_nll(log_p: Floats, truth: Bools) -> float:
    return -float(np.logaddexp.reduce(np.where(truth, log_p, -np.inf), axis=1).mean())
