"""Influence under an eigenvalue-corrected Kronecker-factored Fisher (EK-FAC), to compare whitening with.

Knows factors of gradients and linear algebra. Knows nothing of models, noise or files.

EK-FAC (arXiv 1806.03884; for influence, arXiv 2308.03296, section 2.2) takes a layer's Fisher in the
basis of Kronecker factors: with A = E[x x^T] and G = E[g g^T] over tokens, A = Q_A S_A Q_A^T and
G = Q_G S_G Q_G^T, a gradient W (out, in) becomes Q_G^T W Q_A, and the second moment of each of its
numbers over samples is that direction's eigenvalue. No number is projected away, and nothing larger than a
layer's sides is decomposed; but the basis is only that of the Fisher if x and g are independent, which the
whitening of projections does not ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from safelens.curate.gradients import SampleGradients
from safelens.curate.influence import Averages, ClassMeans, averages
from safelens.curate.passes import Samples
from safelens.train.sequences import Example

Collector = Callable[[Sequence[Example]], SampleGradients]
"""As `GradientCollector` is."""


class EKFAC:
    """The damped inverse square root of the Fisher, applied to gradients.

    Each layer is damped by `damping` times its mean eigenvalue.

    Args:
        batches: Goes through the samples' gradients anew at each call; called twice.
        damping: As a share of the mean eigenvalue.
    """

    def __init__(self, batches: Callable[[], Iterable[SampleGradients]], damping: float) -> None:
        self._bases = _eigenbases(batches())
        sums: list[Tensor] = []
        count = 0
        for gradients in batches():
            squares = [w.square().sum(0) for w in self._rotated(gradients)]
            sums = [a + b for a, b in zip(sums, squares, strict=True)] if sums else squares
            count += len(gradients.losses)
        values = [total / count for total in sums]
        self._roots = [(v + damping * v.mean()).rsqrt() for v in values]

    def __call__(self, gradients: SampleGradients) -> Tensor:
        """Preconditioned gradients, shape (B, D); their dot product is the influence."""
        rotated = self._rotated(gradients)
        parts = [(w * root).flatten(1) for w, root in zip(rotated, self._roots, strict=True)]
        return torch.cat(parts, dim=1)

    def _rotated(self, gradients: SampleGradients) -> list[Tensor]:
        """Q_G^T W Q_A of each layer, shape (B, out, in), by way of its factors."""
        factors = zip(gradients.output_gradients, gradients.inputs, self._bases, strict=True)
        return [
            torch.einsum("bto,bti->boi", g @ left, x @ right) for g, x, (left, right) in factors
        ]


def _eigenbases(batches: Iterable[SampleGradients]) -> list[tuple[Tensor, Tensor]]:
    """(Q_G, Q_A) of each layer.

    Tokens without any gradient (padding; what the answer does not depend on) are no part of a gradient and
    are left out of A.
    """
    sums: list[tuple[Tensor, Tensor]] = []
    for gradients in batches:
        factors = [
            (g.flatten(0, 1), x.flatten(0, 1))
            for g, x in zip(gradients.output_gradients, gradients.inputs, strict=True)
        ]
        reached = [(g[g.any(1)], x[g.any(1)]) for g, x in factors]
        found = [((g.T @ g).double(), (x.T @ x).double()) for g, x in reached]
        sums = (
            [(g + b, a + c) for (g, a), (b, c) in zip(sums, found, strict=True)] if sums else found
        )
    return [(_basis(g), _basis(a)) for g, a in sums]


def _basis(moment: Tensor) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(moment)[1]
    return vectors.float()


def ekfac_scores(
    collector: Collector,
    train: Samples,
    val: Samples,
    classes: int,
    *,
    batch: int = 8,
    damping: float = 0.1,
) -> dict[str, Averages]:
    """Mean influence of each training sample, as dot product and as cosine of preconditioned gradients.

    Three passes over the training samples and one over the validation samples; all must be usable.

    Args:
        collector: Gives gradients as factors.
        train: N samples, which the Fisher is of.
        val: M samples.
        classes: How many there are.
        batch: Samples that are run together.
        damping: See `EKFAC`.

    Returns:
        Averages of shape (N,) under "ekfac" and "ekfac cosine".
    """

    def gradients(samples: Samples) -> Iterator[SampleGradients]:
        for rows in torch.arange(len(samples.ids)).split(batch):
            yield collector([samples.example(int(i)) for i in rows])

    precondition = EKFAC(lambda: gradients(train), damping)
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "ekfac": lambda w: w,
        "ekfac cosine": lambda w: torch.nn.functional.normalize(w, dim=1),
    }
    means: dict[str, ClassMeans] = {}
    labels = torch.tensor(list(val.labels)).split(batch)
    for found, some in zip(gradients(val), labels, strict=True):
        w = precondition(found)
        for kind, use in kinds.items():
            means.setdefault(kind, ClassMeans.empty(classes, w.shape[1])).add(use(w), some)
    by_class: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for found in gradients(train):
        w = precondition(found)
        for kind, use in kinds.items():
            by_class[kind].append(means[kind].influence(use(w)))
    own = torch.tensor(list(train.labels))
    return {k: averages(torch.cat(v), own, means[k].counts) for k, v in by_class.items()}
