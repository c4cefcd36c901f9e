"""Influence of training samples on validation samples: two scores, and their per-class averages.

Knows vectors. Knows nothing of models, files or labels' meaning.

Both filter rules of Algorithm 1 ask for averages of dot products, and a dot product is linear: the mean
over validation samples of <u_i, v_j> is <u_i, mean of v_j>. So a mean vector a class decides exactly as
the full matrix would, in one pass over the training set and in memory that does not grow with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Score = Literal["tracin", "whitened"]
"""`tracin`: the gradients' dot product (equation 1 of arXiv 2605.17610). `whitened`: the cubed cosine of
gradients that were preconditioned by `Whitening`."""


@dataclass
class ClassMeans:
    """Running mean of vectors in each class, in float64 so that their order does not matter.

    Attributes:
        sums: Shape (C, D).
        counts: Vectors added, shape (C,).
    """

    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, classes: int, dimension: int) -> ClassMeans:
        """Without any vector."""
        return cls(
            torch.zeros(classes, dimension, dtype=torch.float64),
            torch.zeros(classes, dtype=torch.long),
        )

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors (B, D) of the classes `labels` (B,)."""
        self.sums.index_add_(0, labels.cpu(), vectors.double().cpu())
        self.counts += torch.bincount(labels.cpu(), minlength=len(self.counts))

    def merged(self, other: ClassMeans) -> ClassMeans:
        """What both have seen together."""
        return ClassMeans(self.sums + other.sums, self.counts + other.counts)

    def influence(self, vectors: Tensor) -> Tensor:
        """Mean dot product of each vector with those of each class, shape (B, C); NaN for a class of none."""
        # One vector at a time in float64: at full size a batch of them would fill the memory.
        products = torch.stack([self.sums @ vector.double().cpu() for vector in vectors])
        return products / self.counts


@dataclass(frozen=True)
class Averages:
    """What the filter rules read, of each training sample.

    Attributes:
        own: Mean influence on the validation samples of its own class, shape (N,).
        all: Mean influence on all validation samples, shape (N,).
    """

    own: Tensor
    all: Tensor


def cubed_means(u: Tensor, v: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean cubed dot product of each vector with those of each class, shape (B, C); NaN for a class of none.

    A class is many scenes. A wrong label shows against the few validation samples that look alike, and a
    plain mean drowns them among the others, whose cosines are near 0; the cube keeps sign and lets the large
    ones decide. Blocks of rows bound the memory by the validation set.

    Args:
        u: Unit vectors, shape (B, k).
        v: Unit vectors of the validation samples, shape (M, k).
        labels: Classes of those, shape (M,).
        classes: How many there are.
    """
    members = torch.nn.functional.one_hot(labels, classes).double()
    sums = [(block.double() @ v.double().T) ** 3 @ members for block in u.split(1024)]
    return torch.cat(sums) / members.sum(0)


def averages(by_class: Tensor, labels: Tensor, counts: Tensor) -> Averages:
    """The two averages, from mean influences on each class.

    Args:
        by_class: Mean influence on the validation samples of each class, shape (N, C).
        labels: Class of each training sample, shape (N,).
        counts: Validation samples of each class, shape (C,).

    Raises:
        ValueError: A class of training samples without validation samples: the mean is undefined.
    """
    missing = sorted(set(labels.tolist()) & set(torch.nonzero(counts == 0).flatten().tolist()))
    if missing:
        raise ValueError(f"no validation sample of class {missing}: influence on it is undefined")
    share = counts.double() / counts.sum()
    seen = by_class[:, counts > 0]
    return Averages(by_class.gather(1, labels[:, None])[:, 0], seen @ share[counts > 0])


class Whitening:
    """Damped inverse square root of the gradients' second moment, then unit length.

    With C = mean of z z^T over training samples, w = (C + damping * tr(C) / k * I)^(-1/2) z and u = w / |w|.
    <w_i, w_j> is the influence under a damped empirical Fisher (a Gauss-Newton preconditioner). The plain
    dot product is ruled by whatever raises all losses alike and by the gradients' lengths: a mislabelled
    clip has a long gradient. Whitening takes the first away, unit length the second.

    Args:
        moment: Sum of z z^T, shape (k, k).
        count: How many z.
        damping: As a share of the mean variance.
    """

    def __init__(self, moment: Tensor, count: int, damping: float = 0.1) -> None:
        if count < 1 or damping <= 0:
            raise ValueError(f"whitening needs samples and damping > 0: {count}, {damping}")
        values, vectors = torch.linalg.eigh(moment.double() / count)
        values = values.clamp(min=0)
        self._root = vectors * (values + damping * values.mean()).rsqrt() @ vectors.T

    def __call__(self, z: Tensor) -> Tensor:
        """Unit vectors u, shape (B, k), in float64."""
        w = z.double() @ self._root
        return w / w.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
