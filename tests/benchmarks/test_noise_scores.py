"""EK-FAC against its formula written out on toy layers; scores against noise whose answer is known."""

import numpy as np
import pytest
import torch

from benchmarks.ekfac import EKFAC, ekfac_scores
from benchmarks.noise_scores import noise_auroc, of_rank, ranks
from safelens.curate.gradients import SampleGradients
from safelens.curate.projection import FactoredProjection

SIDES = ((4, 3), (2, 5))
"""(out, in) of two layers."""


class Toy:
    """Gradients of made-up factors; the last token of every third sample is padding."""

    def __init__(self, count, seed):
        random = torch.Generator().manual_seed(seed)
        draw = lambda width: torch.randn(count, 6, width, generator=random)  # noqa: E731
        self.g = [draw(out) for out, _ in SIDES]
        self.x = [draw(into) for _, into in SIDES]
        for g in self.g:
            g[::3, -1] = 0
        self.ids = [str(i) for i in range(count)]
        self.labels = [i % 2 for i in range(count)]

    def example(self, row):
        return self, row

    def weights(self, layer):
        return torch.einsum("bto,bti->boi", self.g[layer], self.x[layer]).double()


def collect(batch):
    toy, rows = batch[0][0], [row for _, row in batch]
    return SampleGradients(
        torch.zeros(len(rows)), tuple(x[rows] for x in toy.x), tuple(g[rows] for g in toy.g)
    )


def inverse_fisher(train, layer, damping):
    """(Q_G x Q_A) diag(1 / (lambda + damping * mean)) (Q_G x Q_A)^T, a matrix for vec(W) by rows."""
    tokens = [
        (g, x)
        for g, x in zip(train.g[layer].flatten(0, 1), train.x[layer].flatten(0, 1))
        if g.any()
    ]
    a = sum(np.outer(x, x) for _, x in tokens) / len(tokens)
    g = sum(np.outer(g, g) for g, _ in tokens) / len(tokens)
    basis = np.kron(np.linalg.eigh(g)[1], np.linalg.eigh(a)[1])
    rows = train.weights(layer).flatten(1).numpy()
    values = np.mean([(basis.T @ w) ** 2 for w in rows], axis=0)
    return basis @ np.diag(1 / (values + damping * values.mean())) @ basis.T


def test_ekfac_is_its_formula():
    train, val = Toy(20, 1), Toy(7, 2)
    matrix = np.zeros((20, 7))
    lengths = np.zeros(20), np.zeros(7)
    for layer in range(2):
        inverse = inverse_fisher(train, layer, 0.2)
        u, v = (t.weights(layer).flatten(1).numpy() for t in (train, val))
        matrix += u @ inverse @ v.T
        for total, w in zip(lengths, (u, v)):
            total += np.einsum("bi,ij,bj->b", w, inverse, w)
    cosine = matrix / np.sqrt(lengths[0])[:, None] / np.sqrt(lengths[1])
    found = ekfac_scores(collect, train, val, 2, batch=3, damping=0.2)
    for name, wanted in (("ekfac", matrix), ("ekfac cosine", cosine)):
        own = [wanted[i, np.array(val.labels) == train.labels[i]].mean() for i in range(20)]
        np.testing.assert_allclose(found[name].own, own, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[name].all, wanted.mean(1), rtol=1e-4, atol=1e-5)


def test_ekfac_makes_every_direction_of_the_training_set_alike():
    train = Toy(50, 3)
    batches = lambda: [collect([(train, i) for i in range(50)])]  # noqa: E731
    w = EKFAC(batches, damping=1e-6)(batches()[0])
    np.testing.assert_allclose(w.square().mean(0), 1, rtol=1e-3)


def test_a_smaller_rank_lies_within_a_larger_one():
    layers = {"a": torch.nn.Linear(6, 8), "b": torch.nn.Linear(5, 7)}
    random = torch.Generator().manual_seed(0)
    draw = lambda width: torch.randn(3, 4, width, generator=random)  # noqa: E731
    found = SampleGradients(torch.zeros(3), (draw(6), draw(5)), (draw(8), draw(7)))
    project = FactoredProjection(layers, rank=4, seed=1)
    small = of_rank(project(found), 2, layers=2)
    expected = torch.cat(
        [
            (left[:, :2].T @ w @ right[:, :2]).flatten(1)
            for w, (left, right) in zip(found.weights(), project._sides)
        ],
        dim=1,
    )
    torch.testing.assert_close(small, expected)
    assert ranks(2 * 16, 2) == [2, 4]
    with pytest.raises(ValueError, match="not 3 layers"):
        ranks(32, 3)


def test_scores_find_labels_that_their_gradients_contradict():
    """Class k's gradients point along axis k; a wrong label's point against it, and are long."""
    random = torch.Generator().manual_seed(0)
    true = torch.arange(120) % 3
    wrong = torch.arange(120) % 5 == 0
    given = torch.where(wrong, (true + 1) % 3, true)
    axes = 3 * torch.eye(3, 18)

    def drawn(labels):
        return axes[labels] + 0.3 * torch.randn(len(labels), 18, generator=random)

    z = torch.where(wrong[:, None], -2 * drawn(given), drawn(given))
    val = torch.arange(30) % 3
    probabilities = 0.1 + 0.7 * torch.nn.functional.one_hot(true, 3)
    found = noise_auroc(
        z,
        drawn(val),
        given,
        val,
        losses=wrong + 0.1 * torch.rand(120, generator=random),
        wrong=wrong,
        layers=2,
        pred_probs={"out of fold": probabilities},
    )
    assert found["loss"] == 1
    assert found["tracin of projections: own"] == 1
    assert found["whitened, rank 3, damping 0.1: own"] == 1
    assert found["self-confidence, out of fold"] == 1
    assert found["whitened, rank 2, damping 1: own"] > 0.5
    pytest.importorskip("cleanlab")
    assert found["cleanlab normalized_margin, out of fold"] == 1
