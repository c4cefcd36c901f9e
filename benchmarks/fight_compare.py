"""Figures of scores over repeats, and whether one learner is better than another beyond chance.

Knows scores, labels and sources. Knows nothing of where scores come from.

Chance is taken over sources: clips of one source are alike, so sources are drawn with replacement, with all
their clips, and both learners are measured on the same draws. What the learners would have become on other
training clips is not in that spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from safelens.evaluate.spread import Spread, spread

DRAWS = 4000
FIGURES = ("accuracy", "auroc", "within_source_auroc")


class Difference(TypedDict):
    """One figure of a learner minus that of another, and its 95 % interval over draws of sources."""

    mean: float
    low: float
    high: float


def drawn_weights(groups: Sequence[str], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each clip occurs in each bootstrap draw of sources, (draws, N)."""
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts[:, place].astype(float)


def weighted(
    scores: np.ndarray, labels: np.ndarray, groups: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The figures of one repeat under each row of weights.

    Accuracy is at 0.5. The area under the ROC curve is over all pairs of a fight and another clip, and within
    sources over those of the same source, where place and camera tell nothing.

    Args:
        scores: Probability of a fight, (N,).
        labels: 1 for a fight, (N,).
        groups: Source of each clip.
        weights: (draws, N).

    Returns:
        Each figure, (draws,); NaN where a draw leaves it undefined.
    """
    fight, other = labels == 1, labels == 0
    above = scores[fight, None] - scores[None, other]
    wins = (above > 0) + 0.5 * (above == 0)
    names = np.asarray(groups)
    same = (names[fight, None] == names[None, other]).astype(float)
    ours, theirs = weights[:, fight], weights[:, other]

    def area(pairs: np.ndarray) -> np.ndarray:
        # A source that is drawn k times counts k times, not k * k: within it, each copy meets itself.
        left = np.sqrt(ours) if pairs is same else ours
        right = np.sqrt(theirs) if pairs is same else theirs
        won = ((left @ (wins * pairs)) * right).sum(1)
        met = ((left @ pairs) * right).sum(1)
        return np.divide(won, met, out=np.full(len(won), np.nan), where=met > 0)

    right = ((scores > 0.5) == fight).astype(float)
    return {
        "accuracy": weights @ right / weights.sum(1),
        "auroc": area(np.ones_like(same)),
        "within_source_auroc": area(same),
    }


def over_repeats(
    scores: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> dict[str, Spread]:
    """Each figure's mean and sample deviation over repeats; `scores` is (repeats, N)."""
    once = np.ones((1, len(labels)))
    found = [weighted(row, labels, groups, once) for row in scores]
    return {name: spread([float(one[name][0]) for one in found]) for name in FIGURES}


def compare(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> dict[str, Difference]:
    """Each figure of `ours` minus `theirs`, both (repeats, N), averaged over repeats before sources are drawn."""
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    for weights in (np.ones((1, len(labels))), drawn_weights(groups)):
        pairs = [
            (weighted(a, labels, groups, weights), weighted(b, labels, groups, weights))
            for a, b in zip(ours, theirs, strict=True)
        ]
        for name in FIGURES:
            gaps[name].append(np.mean([a[name] - b[name] for a, b in pairs], 0))
    found: dict[str, Difference] = {}
    for name, (observed, drawn) in gaps.items():
        low, high = np.nanquantile(drawn, (0.025, 0.975))
        found[name] = Difference(mean=float(observed[0]), low=float(low), high=float(high))
    return found
