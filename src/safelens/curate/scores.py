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

from safelens.curate.influence import Averages, ClassMeans, Score, Whitening, averages
from safelens.curate.passes import CurationError, InfluenceStore


@dataclass(frozen=True)
class Scored:
    """Scores of N samples, rows in the data set's order; NaN where a sample gave no gradient.

    Attributes:
        ids: Of the samples.
        labels: Class indices, shape (N,).
        errors: Why a sample gave no gradient; None where it did.
        losses: Mean cross-entropy of the answer, shape (N,).
        averages: For each score what the filter rules read.
    """

    ids: list[str]
    labels: Tensor
    errors: list[str | None]
    losses: Tensor
    averages: dict[Score, Averages]

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
    damping: float = 0.1,
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
        CurationError: The checkpoints saw other samples, or a class has no validation sample.
    """
    summed: dict[Score, Tensor] = {}
    first: _Rows | None = None
    counts = torch.zeros(classes, dtype=torch.long)
    total = sum(weights)
    for store, weight in zip(stores, weights, strict=True):
        train, val = _read(store, "train"), _read(store, "val")
        if first is not None and train.ids != first.ids:
            raise CurationError(
                f"{store.folder} and {stores[0].folder} hold other training samples"
            )
        whiten = _whitening(train, damping)
        means = _means(whiten(val.z[val.usable]), val.labels[val.usable], classes)
        counts = means.counts
        assert train.tracin is not None
        found: dict[Score, Tensor] = {
            "tracin": weight * train.tracin,
            "whitened": weight / total * _of_usable(train, means.influence(whiten(_kept(train)))),
        }
        for score, values in found.items():
            summed[score] = values + summed[score] if score in summed else values
        first = first or train
    assert first is not None
    return _scored(first, summed, counts)


def validation_scores(store: InfluenceStore, classes: int, *, damping: float = 0.1) -> Scored:
    """Influence between each validation sample and the training set, to find suspicious ones (appendix K).

    The same rules read the other way round: a validation sample whose gradient goes against the training
    samples of its own class, or against all of them, should be looked at by a person.
    """
    train, val = _read(store, "train"), _read(store, "val")
    whiten = _whitening(train, damping)
    found: dict[Score, Tensor] = {}
    counts = torch.zeros(classes, dtype=torch.long)
    for score, vectors in (
        ("tracin", (train.z[train.usable], val.z)),
        ("whitened", (whiten(_kept(train)), whiten(val.z))),
    ):
        means = _means(vectors[0], train.labels[train.usable], classes)
        counts = means.counts
        found[score] = means.influence(vectors[1])  # type: ignore[index]
    return _scored(val, found, counts)


def write_matrix(store: InfluenceStore, path: Path, score: Score, *, damping: float = 0.1) -> None:
    """The full matrix of influences, float32 of shape (N, M), from the projections, as an .npy file.

    For audit: the filter does not need it. `tracin` is approximate here, as projections keep dot products
    nearly; `whitened` is what the filter reads. Samples without a gradient have rows or columns of NaN.
    """
    train, val = _read(store, "train"), _read(store, "val")
    whiten = _whitening(train, damping) if score == "whitened" else Tensor.double
    columns = whiten(val.z)
    out = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(len(train.ids), len(val.ids))
    )
    for rows in torch.arange(len(train.ids)).split(1024):
        out[rows.numpy()] = (whiten(train.z[rows]) @ columns.T).float().numpy()
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


def _means(vectors: Tensor, labels: Tensor, classes: int) -> ClassMeans:
    means = ClassMeans.empty(classes, vectors.shape[1])
    means.add(vectors, labels)
    return means


def _scored(rows: _Rows, by_class: dict[Score, Tensor], counts: Tensor) -> Scored:
    found = {score: averages(values, rows.labels, counts) for score, values in by_class.items()}
    return Scored(rows.ids, rows.labels, rows.errors, rows.losses, found)
