"""Reliability, against torchmetrics, scipy and figures worked out by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torchmetrics.classification import MulticlassCalibrationError

from safelens.calibrate import CalibrationError, Screening
from safelens.reliability import class_reliability, ece, reliability, reliability_diagram, wilson


def screening(n=3000, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    p = torch.tensor(rng.normal(size=(n, classes)) * 2).softmax(-1).double()
    target = torch.tensor(rng.integers(classes, size=n))
    truth = np.eye(classes, dtype=bool)[target.numpy()]
    return p, target, Screening.from_probabilities(p.numpy(), truth, np.ones(n, bool))


def reference(p, target, bins=15):
    metric = MulticlassCalibrationError(num_classes=p.shape[1], n_bins=bins, norm="l1")
    return metric(p, target).item()


@pytest.mark.parametrize("bins", [5, 15, 40])
def test_ece_is_that_of_torchmetrics(bins):
    p, target, s = screening()
    found = reliability(s.confidence, s.right, bins=bins)
    assert ece(found) == pytest.approx(reference(p, target, bins), abs=1e-6)
    assert sum(b.count for b in found) == 3000


def test_by_predicted_class_it_is_that_of_the_part():
    p, target, s = screening()
    found = class_reliability(s, ["a", "b", "c", "d"])
    for index, name in enumerate("abcd"):
        part = (p.argmax(1) == index).numpy()
        assert ece(found[name]) == pytest.approx(reference(p[part], target[part]), abs=1e-6)
    only = s.take(s.predicted == 2)
    assert class_reliability(only, ["a", "b", "c", "d"]).keys() == {"c"}


def test_edges_belong_to_the_bin_above_and_1_to_the_last():
    found = reliability([0.0, 0.5, 0.5, 1.0], [False, True, False, True], bins=2)
    assert [(b.lower, b.upper, b.count) for b in found] == [(0, 0.5, 1), (0.5, 1, 3)]
    assert found[1].accuracy == pytest.approx(2 / 3)
    assert found[1].confidence == pytest.approx(2 / 3)
    assert ece(found) == pytest.approx(0)


def test_empty_bins_say_nothing():
    found = reliability([0.95, 0.9], [True, False])
    assert [b.count for b in found] == [0] * 13 + [1, 1]
    assert found[0].accuracy is None
    assert found[0].low is None
    assert ece(found) == pytest.approx((0.05 + 0.9) / 2)


def test_adaptive_bins_have_equal_mass_and_never_part_ties():
    rng = np.random.default_rng(0)
    c = rng.uniform(size=150)
    r = rng.uniform(size=150) < c
    found = reliability(c, r, adaptive=True)
    assert [b.count for b in found] == [10] * 15
    order = np.argsort(c)
    expected = np.mean(
        [abs(r[k].mean() - c[k].mean()) for k in np.split(order, 15)]
    )  # equal sizes: the plain mean
    assert ece(found) == pytest.approx(expected)
    tied = np.array([0.5] * 40 + [0.9] * 60)
    found = reliability(tied, np.arange(100) % 2 == 0, adaptive=True)
    assert [(b.lower, b.upper, b.count) for b in found] == [(0.5, 0.5, 40), (0.9, 0.9, 60)]


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (980, 1000), (1, 1)])
def test_wilson_is_scipys(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    [found] = reliability([1.0] * n, [True] * k + [False] * (n - k), bins=1)
    assert (found.low, found.high) == wilson(k, n)


def test_no_answers_and_no_probabilities_are_refused():
    with pytest.raises(CalibrationError, match="no answers"):
        reliability([], [])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        reliability([1.2], [True])
    with pytest.raises(ValueError, match="one shape"):
        reliability([0.2], [True, False])


@pytest.mark.parametrize(("form", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_diagram_is_a_picture_and_the_same_each_time(form, magic, adaptive):
    _, _, s = screening(300)
    bins = reliability(s.confidence, s.right, adaptive=adaptive)
    picture = reliability_diagram(bins, title="S1", form=form)
    assert picture.startswith(magic)
    assert picture == reliability_diagram(bins, title="S1", form=form)
    assert picture != reliability_diagram(bins[:-1], title="S1", form=form)
