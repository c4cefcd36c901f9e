"""Folds that never divide a source, and what learns within them: heads on features, and choices among them.

Knows features, labels and sources as arrays. Does not know what the features are of, nor what the scores are
compared with. Whatever is fitted or chosen sees the training folds alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.fight_data import CLASSES
from benchmarks.fight_motion import pooled
from safelens.probe import ProbeConfig, fit_probe

FOLDS = 5
INNER = 3
SMALL_PROBE = {"width": 32, "heads": 4, "window": 5}
"""For a hundred clips of a few steps; states of a language model get the probe's own sizes."""
FITTING = {"steps": 120, "lr": 1e-3, "batch_size": 32, "check_every": 15, "patience": 3}


@dataclass(frozen=True, eq=False)
class Features:
    """Of N clips.

    Attributes:
        rows: (N, F), one vector a clip.
        steps: (N, T, D), or None.
        mask: True where a step counts, (N, T), or None where all do.
    """

    rows: np.ndarray
    steps: np.ndarray | None = None
    mask: np.ndarray | None = None

    @classmethod
    def of_steps(cls, steps: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """Steps, and rows pooled over them."""
        every = np.ones(steps.shape[:2], bool) if mask is None else mask
        return cls(pooled(steps, every), steps, mask)


Head = Callable[[Features, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""(features, labels, train, test, seed) to the probability of a fight for each row of `test`."""


def grouped_folds(
    labels: np.ndarray, groups: Sequence[str], seed: int, folds: int = FOLDS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers (train, test) of each fold; all clips of a group are in one fold.

    Classes are as even between folds as whole groups allow (scikit-learn's StratifiedGroupKFold).

    Raises:
        ValueError: There are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if len(set(groups)) < folds:
        raise ValueError(f"{len(set(groups))} sources cannot be divided into {folds} folds")
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(split.split(np.zeros(len(labels)), labels, groups))


def forest(
    x: Features, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """A random forest of 200 trees on the rows."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(200, random_state=seed).fit(x.rows[train], labels[train])
    return model.predict_proba(x.rows[test])[:, 1]


def logistic(
    x: Features, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """Logistic regression, C 0.01, on standardized rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    return model.fit(x.rows[train], labels[train]).predict_proba(x.rows[test])[:, 1]


def boosting(
    x: Features, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """60 boosted trees of 4 leaves on the rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=60, max_leaf_nodes=4, min_samples_leaf=10, random_state=seed
    )
    return model.fit(x.rows[train], labels[train]).predict_proba(x.rows[test])[:, 1]


def probe(
    x: Features, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """The project's rolling attention probe over the steps, stopped early on 15 % of the training clips."""
    assert x.steps is not None
    steps = torch.from_numpy(x.steps).float()
    mask = None if x.mask is None else torch.from_numpy(x.mask)
    sizes = {} if mask is None else SMALL_PROBE
    config = ProbeConfig(input_dim=steps.shape[-1], labels=CLASSES, **sizes)
    at = [torch.from_numpy(rows) for rows in (train, test)]
    masks = [None if mask is None else mask[rows] for rows in at]
    truth = torch.from_numpy(labels[train])
    fitted = fit_probe(steps[at[0]], masks[0], truth, config, seed=seed, **FITTING)
    return fitted.probe.predict(steps[at[1]], masks[1])[:, 1].double().numpy()


def chosen(
    options: dict[str, tuple[Features, Head]],
    labels: np.ndarray,
    groups: Sequence[str],
    train: np.ndarray,
    seed: int,
) -> str:
    """The option with the highest AUC over grouped folds within the training rows."""
    from sklearn.metrics import roc_auc_score

    inner = grouped_folds(labels[train], [groups[i] for i in train], seed, INNER)
    areas = {}
    for name, (x, head) in options.items():
        scores = np.zeros(len(train))
        for fit, held in inner:
            scores[held] = head(x, labels, train[fit], train[held], seed)
        areas[name] = roc_auc_score(labels[train], scores)
    return max(areas, key=lambda name: areas[name])
