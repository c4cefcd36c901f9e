"""Cost and accuracy of a tau, against brute force and scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from safelens.calibrate import CalibrationError, Screening
from safelens.risk import ALL_TO_S2
from safelens.tradeoff import operating_points, tau_for_accuracy, tau_for_cost


def example(n=300, seed=0, s2=0.9):
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.uniform(0.3, 1, n), 2)
    right = rng.uniform(size=n) < confidence
    s = Screening(confidence, np.zeros(n, int), right, rng.uniform(size=n) < 0.8)
    return s, rng.uniform(size=n) < s2


def test_points_are_those_of_a_loop_over_videos():
    s, s2 = example(80)
    points = operating_points(s, s2, s1_cost=2, s2_cost=10)
    assert points[0].tau == ALL_TO_S2
    assert [p.tau for p in points[1:]] == sorted(set(s.confidence[s.familiar]), reverse=True)
    for point in points:
        right, escalated = 0, 0
        for i in range(80):
            if s.familiar[i] and s.confidence[i] >= point.tau:
                right += s.right[i]
            else:
                escalated += 1
                right += s2[i]
        assert (point.right, point.count) == (right, 80)
        assert point.escalated == pytest.approx(escalated / 80)
        assert point.cost == pytest.approx((2 + escalated / 80 * 10) / 12)
        assert point.accuracy == right / 80
    assert points[0].cost == 1


def test_costs_may_differ_by_video():
    s = Screening(np.array([0.9, 0.5]), np.zeros(2, int), np.ones(2, bool), np.ones(2, bool))
    points = operating_points(s, [True, True], s1_cost=[1, 2], s2_cost=[10, 30])
    assert [p.cost for p in points] == pytest.approx([1, 33 / 43, 3 / 43])


@pytest.mark.parametrize("most", [0.4, 0.6, 0.8, 1.0])
def test_by_cost_the_most_accurate_within_it(most):
    s, s2 = example()
    points = operating_points(s, s2, s1_cost=1, s2_cost=9)
    found = tau_for_cost(points, most=most)
    assert found.cost <= most
    assert all(p.right <= found.right for p in points if p.cost <= most)
    assert all(p.cost >= found.cost for p in points if p.cost <= most and p.right == found.right)


def test_a_cost_out_of_reach_says_what_is_possible():
    s, s2 = example()
    points = operating_points(s, s2, s1_cost=1, s2_cost=9)
    with pytest.raises(CalibrationError, match=rf"costs {points[-1].cost:.3f}, with"):
        tau_for_cost(points, most=0.05)


def test_by_accuracy_the_cheapest_whose_bound_reaches_it():
    s, s2 = example(2000, s2=0.99)
    points = operating_points(s, s2, s1_cost=1, s2_cost=9)
    found, bound = tau_for_accuracy(points, least=0.85, delta=0.05)
    assert bound >= 0.85
    assert found.cost < 1
    # One of the 20 points that are looked at, each at a 20th of delta.
    exact = binomtest(found.right, found.count, alternative="greater")
    assert bound == pytest.approx(exact.proportion_ci(1 - 0.05 / 20, "exact").low, abs=1e-9)


def test_an_accuracy_out_of_reach_says_what_was_reached():
    s, s2 = example()
    points = operating_points(s, s2, s1_cost=1, s2_cost=9)
    with pytest.raises(CalibrationError, match=r"at best, at tau .* of 300 are right, at least"):
        tau_for_accuracy(points, least=0.99, delta=0.05)
    with pytest.raises(ValueError, match="delta=0"):
        tau_for_accuracy(points, least=0.9, delta=0)


def test_the_accuracy_holds_on_the_population():
    """S1 is right with probability c on c uniform in [0, 1], S2 always with 0.8: known accuracy.

    The accuracy at tau is 0.8 tau + (1 - tau^2) / 2, at most 0.82 (at tau 0.8).
    """
    rng = np.random.default_rng(0)
    broken = chosen = 0
    for _ in range(200):
        c = rng.uniform(size=1500)
        s = Screening(c, np.zeros(1500, int), rng.uniform(size=1500) < c, np.ones(1500, bool))
        s2 = rng.uniform(size=1500) < 0.8
        points = operating_points(s, s2, s1_cost=1, s2_cost=9)
        try:
            tau = min(tau_for_accuracy(points, least=0.79, delta=0.05)[0].tau, 1)
        except CalibrationError:
            continue
        chosen += 1
        broken += 0.8 * tau + (1 - tau**2) / 2 < 0.79
    assert chosen > 50
    assert broken <= 10


@pytest.mark.parametrize(("s1_cost", "s2_cost"), [(-1, 1), (0, 0), (np.nan, 1), (1, np.inf)])
def test_costs_that_are_none_are_refused(s1_cost, s2_cost):
    s, s2 = example()
    with pytest.raises(ValueError, match="expected costs"):
        operating_points(s, s2, s1_cost=s1_cost, s2_cost=s2_cost)


def test_shapes_that_differ_and_no_videos_are_refused():
    s, s2 = example()
    with pytest.raises(ValueError, match="s2_right"):
        operating_points(s, s2[:-1], s1_cost=1, s2_cost=1)
    with pytest.raises(CalibrationError, match="no videos"):
        operating_points(s.take(np.zeros(300, bool)), [], s1_cost=1, s2_cost=1)
