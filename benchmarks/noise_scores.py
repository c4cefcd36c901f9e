"""How well scores find wrong labels: influence of several kinds, loss, self-confidence, cleanlab.

Knows stored projections, losses and class probabilities. Runs no model.

Every score is turned so that higher is more suspicious; its figure is the area under the ROC curve for
telling wrong labels from right ones, 0.5 for a score that says nothing and below for one that misleads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from safelens.curate.influence import (
    Averages,
    ClassMeans,
    Whitening,
    averages,
    cubed_means,
)

DAMPING = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def noise_auroc(
    z_train: Tensor,
    z_val: Tensor,
    labels_train: Tensor,
    labels_val: Tensor,
    losses: Tensor,
    wrong: Tensor,
    *,
    layers: int = 7,
    pred_probs: Mapping[str, Tensor] | None = None,
    more: Mapping[str, Averages] | None = None,
) -> dict[str, float]:
    """AUROC of every score for finding wrong labels.

    Args:
        z_train: Projected training gradients, shape (N, layers * r * r), as `FactoredProjection` gives them.
        z_val: Projected validation gradients, shape (M, layers * r * r).
        labels_train: Class indices as given, some of them wrong, shape (N,).
        labels_val: Class indices, shape (M,).
        losses: Of the training samples, shape (N,).
        wrong: Whether a training sample's label is wrong, shape (N,).
        layers: That were projected.
        pred_probs: Class probabilities of the training samples, shape (N, C), by how they were had, for
            instance "out of fold", which is what cleanlab asks for.
        more: Averages of other scores of the training samples, by name: the exact `tracin`, EK-FAC.

    Returns:
        AUROC by name; influence has two, on the own class and on all.
    """
    classes = int(torch.cat([labels_train, labels_val]).max()) + 1
    counts = torch.bincount(labels_val, minlength=classes)
    found: dict[str, Averages] = {}

    def mean_products(u: Tensor, v: Tensor) -> Averages:
        means = ClassMeans.empty(classes, v.shape[1])
        means.add(v, labels_val)
        return averages(means.influence(u), labels_train, counts)

    z, zv = z_train.double(), z_val.double()
    found["tracin of projections"] = mean_products(z, zv)
    found["cosine of projections"] = mean_products(F.normalize(z, dim=1), F.normalize(zv, dim=1))
    for rank in ranks(z.shape[1], layers):
        u, v = (of_rank(x, rank, layers) for x in (z, zv))
        moment = u.T @ u
        for damping in DAMPING:
            whiten = Whitening(moment, len(u), damping)
            how, pair = f"rank {rank}, damping {damping:g}", (whiten(u), whiten(v))
            found[f"whitened, {how}"] = mean_products(*pair)
            cubed = cubed_means(*pair, labels_val, classes)
            found[f"cubed, {how}"] = averages(cubed, labels_train, counts)
    suspicion = {"loss": losses}
    for name, scores in (found | dict(more or {})).items():
        suspicion[f"{name}: own"] = -scores.own
        suspicion[f"{name}: all"] = -scores.all
    for how, probabilities in (pred_probs or {}).items():
        p = probabilities.double()
        suspicion[f"self-confidence, {how}"] = -p.gather(1, labels_train[:, None])[:, 0]
        for method, quality in cleanlab_qualities(labels_train, p).items():
            suspicion[f"cleanlab {method}, {how}"] = -quality
    truth = wrong.numpy()
    return {name: float(roc_auc_score(truth, s.numpy())) for name, s in suspicion.items()}


def ranks(numbers: int, layers: int) -> list[int]:
    """Ranks to try: powers of two up to the stored one.

    Raises:
        ValueError: The numbers are not `layers` squares.
    """
    stored = round((numbers / layers) ** 0.5)
    if stored**2 * layers != numbers:
        raise ValueError(f"{numbers} numbers are not {layers} layers of r * r each")
    return [r for r in (2, 4, 8, 16, 32, 64) if r < stored] + [stored]


def of_rank(z: Tensor, rank: int, layers: int) -> Tensor:
    """The projection of a smaller rank within one of rank r: shape (B, layers * rank**2).

    P^T G Q restricted to the first columns of P and Q is a random projection of that many columns, up to a
    factor that the whitened score does not see.
    """
    stored = round((z.shape[1] / layers) ** 0.5)
    return z.reshape(len(z), layers, stored, stored)[:, :, :rank, :rank].reshape(len(z), -1)


def cleanlab_qualities(labels: Tensor, pred_probs: Tensor) -> dict[str, Tensor]:
    """Cleanlab's label quality (high is good) by each of its methods, shape (N,); none if not installed."""
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}
    p = (pred_probs / pred_probs.sum(1, keepdim=True)).numpy()
    return {
        method: torch.from_numpy(get_label_quality_scores(labels.numpy(), p, method=method))
        for method in CLEANLAB
    }
