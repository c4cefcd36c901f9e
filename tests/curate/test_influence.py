"""Averages by class means against the full matrix; whitening and projection against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from safelens.curate.filtering import (
    as_low_as_few_clean,
    harms_everyone,
    helps_own_class,
    keep,
    zero,
)
from safelens.curate.gradients import SampleGradients
from safelens.curate.influence import Averages, ClassMeans, Whitening, averages, cubed_means
from safelens.curate.projection import FactoredProjection

CLASSES = 4


@pytest.fixture
def vectors():
    """Training vectors (200, 30) of 4 classes, half of one class mislabelled, and validation vectors."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 30, generator=random)

    def draw(n):
        labels = torch.randint(0, CLASSES, (n,), generator=random)
        return centres[labels] + 2 * torch.randn(n, 30, generator=random), labels

    train, val = draw(200), draw(60)
    return train, val


def test_streaming_decisions_equal_those_of_the_full_matrix(vectors):
    (u, labels), (v, val_labels) = vectors
    means = ClassMeans.empty(CLASSES, 30)
    for rows in torch.arange(60).split(7):
        means.add(v[rows], val_labels[rows])
    found = averages(means.influence(u), labels, means.counts)

    matrix = u.double() @ v.double().T
    own = torch.stack([matrix[i, val_labels == labels[i]].mean() for i in range(200)])
    torch.testing.assert_close(found.own, own)
    torch.testing.assert_close(found.all, matrix.mean(1))
    assert torch.equal(helps_own_class(found, zero(found)), own > 0)
    assert torch.equal(harms_everyone(found, zero(found)), matrix.mean(1) < 0)
    assert torch.equal(keep(found, zero(found)), (own > 0) & (matrix.mean(1) >= 0))
    assert 0 < int(keep(found, zero(found)).sum()) < 200


def test_means_merge_in_any_order(vectors):
    _, (v, labels) = vectors
    whole = ClassMeans.empty(CLASSES, 30)
    whole.add(v, labels)
    parts = []
    for rows in torch.randperm(60).split(11):
        part = ClassMeans.empty(CLASSES, 30)
        part.add(v[rows], labels[rows])
        parts.append(part)
    merged = parts[0]
    for part in parts[1:]:
        merged = part.merged(merged)
    torch.testing.assert_close(merged.sums, whole.sums)
    assert torch.equal(merged.counts, whole.counts)


def test_a_class_without_validation_samples_is_an_error(vectors):
    (u, labels), (v, val_labels) = vectors
    means = ClassMeans.empty(CLASSES, 30)
    means.add(v[val_labels != 2], val_labels[val_labels != 2])
    with pytest.raises(ValueError, match=r"no validation sample of class \[2\]"):
        averages(means.influence(u), labels, means.counts)


def test_whitening_is_a_damped_inverse_root(vectors):
    (u, _), _ = vectors
    moment = u.double().T @ u.double()
    whiten = Whitening(moment, len(u), damping=0.2)
    c = moment / len(u)
    damped = c + 0.2 * c.trace() / 30 * torch.eye(30, dtype=torch.float64)
    influence = u[:5].double() @ damped.inverse() @ u[5:9].double().T
    lengths = [
        torch.einsum("bi,ij,bj->b", x.double(), damped.inverse(), x.double()).sqrt()
        for x in (u[:5], u[5:9])
    ]
    torch.testing.assert_close(
        whiten(u[:5]) @ whiten(u[5:9]).T, influence / lengths[0][:, None] / lengths[1]
    )


def test_whitening_of_a_gradient_that_is_zero_is_zero():
    whiten = Whitening(torch.eye(3), 1)
    assert torch.equal(whiten(torch.zeros(1, 3)), torch.zeros(1, 3, dtype=torch.float64))


def gradients(rows, tokens, layers, seed=0):
    random = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.randn(rows, tokens, width, generator=random)

    return SampleGradients(
        torch.zeros(rows),
        tuple(draw(layer.in_features) for layer in layers.values()),
        tuple(draw(layer.out_features) for layer in layers.values()),
    )


def test_projection_is_that_of_the_formed_gradient():
    layers = {"a": torch.nn.Linear(20, 30), "b": torch.nn.Linear(30, 10)}
    project = FactoredProjection(layers, rank=4, seed=3)
    found = gradients(2, 5, layers)
    expected = torch.cat(
        [
            (left.T @ weight @ right).flatten(1)
            for weight, (left, right) in zip(found.weights(), project._sides, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(project(found), expected, rtol=1e-4, atol=1e-4)
    again = FactoredProjection(layers, rank=4, seed=3)(found)
    assert torch.equal(again, project(found))
    assert project.dimension == 32 == again.shape[1]


def test_projection_keeps_dot_products_on_average():
    layers = {"a": torch.nn.Linear(40, 50)}
    found = gradients(2, 3, layers)
    exact = float((found.weights()[0][0] * found.weights()[0][1]).sum())
    drawn = []
    for seed in range(400):
        z = FactoredProjection(layers, rank=8, seed=seed)(found)
        drawn.append(float(z[0] @ z[1]))
    values = torch.tensor(drawn)
    assert float(values.mean()) == pytest.approx(exact, abs=4 * float(values.std()) / 20)
    assert float(values.std()) > 0


def test_cubed_means_are_those_of_the_whole_matrix():
    random = torch.Generator().manual_seed(2)
    u = F.normalize(torch.randn(40, 6, generator=random).double(), dim=1)
    v = F.normalize(torch.randn(15, 6, generator=random).double(), dim=1)
    labels = torch.arange(15) % 4
    found = cubed_means(u, v, labels, 5)
    for number in range(4):
        expected = ((u @ v.T) ** 3)[:, labels == number].mean(1)
        torch.testing.assert_close(found[:, number], expected)
    assert found[:, 4].isnan().all()


def test_clean_samples_fail_as_seldom_as_was_asked():
    """Over many draws of clean samples a further clean one falls below the bound at the rate asked for."""
    random = torch.Generator().manual_seed(3)
    rate, below = 0.1, 0
    for _ in range(400):
        values = torch.randn(2, 2, 30, generator=random, dtype=torch.float64).exp()
        clean, fresh = (Averages(part[0], part[1]) for part in values)
        labels = torch.arange(30) % 2
        bound = as_low_as_few_clean(clean, labels, labels, rate)
        below += int((fresh.own < bound.own).sum()) + int((fresh.all < bound.all).sum())
    share = below / (400 * 60)
    # 15 clean samples of a class: floor(0.1 * 16) = 1 of 16 places
    assert share == pytest.approx(1 / 16, abs=0.006)


def test_too_few_clean_samples_bound_nothing():
    clean = Averages(torch.arange(8.0), torch.arange(8.0))
    labels = torch.zeros(8, dtype=torch.long)
    bound = as_low_as_few_clean(clean, labels, torch.tensor([0, 1]), 0.1)
    assert bound.own.tolist() == [-torch.inf, -torch.inf]
    assert as_low_as_few_clean(clean, labels, labels[:1], 0.12).own.tolist() == [0.0]
    with pytest.raises(ValueError, match="rate 1"):
        as_low_as_few_clean(clean, labels, labels, 1.0)
