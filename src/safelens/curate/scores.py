"""From stored passes to scores: what the filter reads of each sample, for both kinds of influence.

Knows stored rows and linear algebra. Runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safelens.curate.filtering import as_low_as_few_clean, zero
from safelens.curate.influence import (
    Averages,
    ClassMeans,
    Score,
    Whitening,
    averages,
    cubed_means,
)
from safelens.curate.passes import CurationError, InfluenceStore

DAMPING = 0.1
"""Of the whitening. A model that has learned its answers well bears any from 0.03 to 3, one that has not
wants little."""


@dataclass(frozen=True)
class Scored:
    """Scores of N samples, rows in the data set's order; NaN where a sample gave no gradient.

    Attributes:
        ids: Of the samples.
        labels: Class indices, shape (N,).
        errors: Why a sample gave no gradient; None where it did.
        losses: Mean cross-entropy of the answer, shape (N,).
        averages: For each score what the filter rules read.
        clean: The same of the M validation samples, each against the others; of `whitened` alone.
        clean_labels: Classes of those, shape (M,).
    """

    ids: list[str]
    labels: Tensor
    errors: list[str | None]
    losses: Tensor
    averages: dict[Score, Averages]
    clean: dict[Score, Averages]
    clean_labels: Tensor

    def least(self, score: Score, rate: float) -> Averages:
        """What the filter asks of every sample.

        Args:
            score: `tracin` is held against 0, as in the paper; `whitened` against clean samples.
            rate: Share of clean samples that may fail each of these criteria.
        """
        if score not in self.clean:
            return zero(self.averages[score])
        return as_low_as_few_clean(self.clean[score], self.clean_labels, self.labels, rate)

    @property
    def usable(self) -> Tensor:
        """Which samples gave a gradient, shape (N,)."""
        return torch.tensor([error is None for error in self.errors])


@dataclass(frozen=True)
class _Rows:
    ids: list[str]
    labels: Tensor
    errors: list[str | None]
    losses: Tensor
    z: Tensor
    tracin: Tensor | None

    @property
    def usable(self) -> Tensor:
        return torch.tensor([error is None for error in self.errors])


def training_scores(
    stores: Sequence[InfluenceStore],
    weights: Sequence[float],
    classes: int,
    *,
    damping: float = DAMPING,
) -> Scored:
    """Influence of every training sample on the validation set, over one or more checkpoints.

    TracInCP (arXiv 2002.08484) sums the dot products over checkpoints, each times its learning rate; the
    whitened score, which has no scale, is averaged with the same weights.

    Args:
        stores: Finished passes, one a checkpoint.
        weights: Learning rate at each checkpoint.
        classes: How many there are.
        damping: Of the whitening.

    Raises:
        CurationError: The checkpoints saw or could use other samples, or a class has no validation sample.
    """
    summed: dict[Score, Tensor] = {}
    first: tuple[_Rows, _Rows] | None = None
    among_clean: Tensor | float = 0.0
    total = sum(weights)
    for store, weight in zip(stores, weights, strict=True):
        train, val = _read(store, "train"), _read(store, "val")
        if first is not None and (train.ids, val.ids, val.errors) != (
            first[0].ids,
            first[1].ids,
            first[1].errors,
        ):
            raise CurationError(
                f"{store.folder} and {stores[0].folder} hold other samples, or could not use the same"
            )
        whiten = _whitening(train, damping)
        v, classes_of = whiten(val.z[val.usable]), val.labels[val.usable]
        by_class = cubed_means(whiten(_kept(train)), v, classes_of, classes)
        assert train.tracin is not None
        found: dict[Score, Tensor] = {
            "tracin": weight * train.tracin,
            "whitened": weight / total * _of_usable(train, by_class),
        }
        for score, values in found.items():
            summed[score] = values + summed[score] if score in summed else values
        among_clean = among_clean + weight / total * cubed_means(v, v, classes_of, classes)
        first = first or (train, val)
    assert first is not None
    assert isinstance(among_clean, Tensor)
    train, val = first
    labels = val.labels[val.usable]
    counts = torch.bincount(labels, minlength=classes)
    clean = _without_itself(averages(among_clean, labels, counts), labels, counts)
    return Scored(
        train.ids,
        train.labels,
        train.errors,
        train.losses,
        {score: averages(values, train.labels, counts) for score, values in summed.items()},
        {"whitened": clean},
        labels,
    )


def _without_itself(found: Averages, labels: Tensor, counts: Tensor) -> Averages:
    """Averages of cubed cosines among the same samples, without each one's own, which is 1."""
    own, every = counts[labels].double(), float(counts.sum())
    return Averages(
        torch.where(own > 1, (found.own * own - 1) / (own - 1), -torch.inf),
        (found.all * every - 1) / max(every - 1, 1),
    )


def validation_scores(store: InfluenceStore, classes: int, *, damping: float = DAMPING) -> Scored:
    """Influence between each validation sample and the training set, to find suspicious ones (appendix K).

    The same rules read the other way round: a validation sample whose gradient goes against the training
    samples of its own class, or against all of them, should be looked at by a person.
    """
    train, val = _read(store, "train"), _read(store, "val")
    whiten = _whitening(train, damping)
    labels = train.labels[train.usable]
    means = ClassMeans.empty(classes, val.z.shape[1])
    means.add(_kept(train), labels)
    found: dict[Score, Tensor] = {
        "tracin": means.influence(val.z),
        "whitened": cubed_means(whiten(val.z), whiten(_kept(train)), labels, classes),
    }
    bounds = {score: averages(values, val.labels, means.counts) for score, values in found.items()}
    return Scored(val.ids, val.labels, val.errors, val.losses, bounds, {}, labels)


def write_matrix(
    store: InfluenceStore, path: Path, score: Score, *, damping: float = DAMPING
) -> None:
    """The full matrix of influences, float32 of shape (N, M), from the projections, as an .npy file.

    For audit: the filter does not need it. `tracin` is approximate here, as projections keep dot products
    nearly; of `whitened` these are the cubed cosines that the filter averages. Samples without a gradient
    have rows or columns of NaN.
    """
    train, val = _read(store, "train"), _read(store, "val")
    whiten = _whitening(train, damping) if score == "whitened" else Tensor.double
    columns = whiten(val.z)
    out = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(len(train.ids), len(val.ids))
    )
    for rows in torch.arange(len(train.ids)).split(1024):
        products = whiten(train.z[rows]) @ columns.T
        out[rows.numpy()] = (products**3 if score == "whitened" else products).float().numpy()
    out.flush()


def _read(store: InfluenceStore, part: str) -> _Rows:
    table = store.rows(part)  # type: ignore[arg-type]
    errors = table["error"].to_pylist()
    width = max((len(z) for z in table["z"].to_pylist() if z is not None), default=0)

    def matrix(name: str, width: int) -> Tensor:
        rows = [r if r is not None else [float("nan")] * width for r in table[name].to_pylist()]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), width)

    if not width:
        raise CurationError(f"{store.folder}: no {part} sample gave a gradient")
    tracin = None
    if "tracin" in table.column_names:
        lists = [r for r in table["tracin"].to_pylist() if r is not None]
        tracin = matrix("tracin", len(lists[0]))
    losses = [float("nan") if x is None else x for x in table["loss"].to_pylist()]
    return _Rows(
        table["id"].to_pylist(),
        torch.tensor(table["label"].to_pylist()),
        errors,
        torch.tensor(losses),
        matrix("z", width),
        tracin,
    )


def _kept(rows: _Rows) -> Tensor:
    return rows.z[rows.usable]


def _of_usable(rows: _Rows, values: Tensor) -> Tensor:
    """Values of the usable rows put back among all, NaN elsewhere."""
    out = torch.full((len(rows.ids), values.shape[1]), float("nan"), dtype=torch.float64)
    out[rows.usable] = values
    return out


def _whitening(train: _Rows, damping: float) -> Whitening:
    z = _kept(train)
    return Whitening(z.T @ z, len(z), damping)
