"""Risk control: tests by brute force, and whether the promise holds where the risk is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from safelens.calibrate import CalibrationError, Screening
from safelens.risk import (
    ALL_TO_S2,
    check_promise,
    control_class_risk,
    control_risk,
    samples_needed,
    selective_risk,
    thresholds,
)

ALPHA = DELTA = 0.05


def made(confidence, right, predicted=None, familiar=None):
    n = len(confidence)
    return Screening(
        np.asarray(confidence, float),
        np.zeros(n, int) if predicted is None else np.asarray(predicted),
        np.asarray(right, bool),
        np.ones(n, bool) if familiar is None else np.asarray(familiar, bool),
    )


def drawn(n, error, seed, law=lambda u: u):
    """Confidences law(U), wrong with probability error(U), for U uniform in [0, 1]."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(size=n)
    return made(law(u), rng.uniform(size=n) >= error(u))


def by_brute_force(s, alpha, delta):
    """The lowest tau over a fine grid of numbers, written from the paper's Algorithm 1."""
    available = int(s.familiar.sum())
    many = 1
    while math.ceil(math.log(delta / (many + 1)) / math.log(1 - alpha)) * 2**many <= available:
        many += 1
    best = None
    for k in range(many):
        start = math.ceil(math.log(delta / many) / math.log(1 - alpha)) * 2**k
        for tau in np.linspace(1, 0, 1001):
            own = s.familiar & (s.confidence >= tau)
            if own.sum() < start:
                continue
            test = binomtest(int((own & ~s.right).sum()), int(own.sum()), alpha, "less")
            if test.pvalue > delta / many:
                break
            best = tau if best is None else min(best, tau)
    return best


@pytest.mark.parametrize(
    ("alpha", "delta", "n"), [(0.05, 0.05, 59), (0.1, 0.1, 22), (0.01, 0.05, 299), (0.5, 0.2, 3)]
)
def test_samples_needed_is_the_first_that_suffices(alpha, delta, n):
    assert samples_needed(alpha, delta) == n
    assert binom.cdf(0, n, alpha) <= delta < binom.cdf(0, n - 1, alpha)


def test_the_tau_is_that_of_brute_force():
    refused = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(120, 500))
        confidence = np.round(rng.beta(4, 1, n), 2)  # many ties
        right = rng.uniform(size=n) >= 0.5 * (1 - confidence)
        s = made(confidence, right, familiar=rng.uniform(size=n) < 0.9)
        expected = by_brute_force(s, 0.1, 0.1)
        if expected is None:
            refused += 1
            with pytest.raises(CalibrationError, match="no tau keeps the risk"):
                control_risk(s, alpha=0.1, delta=0.1)
            continue
        found = control_risk(s, alpha=0.1, delta=0.1)
        own = s.stands(found.tau)
        assert own.sum() == (s.familiar & (s.confidence >= expected - 1e-9)).sum()
        assert (found.selected, found.errors) == (own.sum(), (own & ~s.right).sum())
        assert found.tau in confidence[s.familiar]
    assert refused <= 4


def test_58_are_too_few_and_59_suffice():
    confidence = np.linspace(0.5, 1, 59)
    with pytest.raises(CalibrationError, match=r"58 familiar answers are too few.*at least 59"):
        control_risk(made(confidence[1:], [True] * 58), alpha=ALPHA, delta=DELTA)
    found = control_risk(made(confidence, [True] * 59), alpha=ALPHA, delta=DELTA)
    assert (found.tau, found.selected, found.errors) == (0.5, 59, 0)
    assert found.starts == (59,)
    assert [step.p for step in found.path] == pytest.approx([0.95**59])
    unfamiliar = [False] + [True] * 58
    with pytest.raises(CalibrationError, match="58 familiar"):
        control_risk(made(confidence, [True] * 59, familiar=unfamiliar), alpha=ALPHA, delta=DELTA)


def test_the_evidence_is_the_path_to_the_first_failure():
    """One sequence: 100 confident right answers, then wrong ones."""
    confidence = np.arange(110)[::-1] / 110
    s = made(confidence, [True] * 100 + [False] * 10)
    found = control_risk(s, alpha=ALPHA, delta=DELTA)
    assert found.starts == (59,)
    assert [step.selected for step in found.path] == list(range(59, 103))
    for step in found.path:
        own = s.stands(step.tau)
        assert step.errors == (own & ~s.right).sum()
        assert step.p == pytest.approx(binom.cdf(step.errors, step.selected, ALPHA))
    assert all(step.p <= DELTA for step in found.path[:-1])
    assert found.path[-1].p > DELTA
    assert (found.selected, found.errors) == (101, 1)
    assert found.tau == confidence[100]


def test_ties_are_taken_together():
    confidence = np.array([0.9] * 70 + [0.8] * 30)
    found = control_risk(made(confidence, [True] * 70 + [False] * 30), alpha=ALPHA, delta=DELTA)
    assert (found.tau, found.selected) == (0.9, 70)
    with pytest.raises(CalibrationError, match="30 of the 100 most confident"):
        control_risk(made([0.9] * 100, [True] * 70 + [False] * 30), alpha=ALPHA, delta=DELTA)


def test_one_early_error_does_not_end_it_where_there_is_data():
    right = np.ones(1000, bool)
    right[3] = False
    found = control_risk(made(np.linspace(1, 0.2, 1000), right), alpha=ALPHA, delta=DELTA)
    assert len(found.starts) == 4
    assert found.level == DELTA / 4
    assert (found.selected, found.errors) == (1000, 1)


def test_classes_have_their_own_tau_and_the_poor_ones_go_to_s2():
    n = 300
    predicted = np.repeat([0, 1, 2], (n, n, 60))
    right = np.ones(2 * n + 60, bool)
    right[n : 2 * n : 5] = False
    confidence = np.tile(np.linspace(1, 0.4, n), 3)[: 2 * n + 60]
    s = made(confidence, right, predicted)
    found = control_class_risk(s, ["a", "b", "c"], alpha=ALPHA, delta=DELTA)
    assert found.taus == {"a": pytest.approx(0.4), "b": ALL_TO_S2, "c": ALL_TO_S2}
    assert found.found.keys() == {"a"}
    assert found.found["a"].delta == DELTA / 3
    assert "are wrong" in found.refused["b"]
    assert "60 familiar answers are too few" in found.refused["c"]
    assert f"at least {samples_needed(ALPHA, DELTA / 3)} are needed" in found.refused["c"]
    assert s.stands(found.thresholds).sum() == n
    assert selective_risk(s, found.thresholds) == 0
    with pytest.raises(CalibrationError, match=r"no class's risk can be bounded:\n  b: "):
        control_class_risk(s.take(s.predicted == 1), ["b", "a"], alpha=ALPHA, delta=DELTA)


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1), (-1, 2)])
def test_bounds_that_are_no_probabilities_are_refused(alpha, delta):
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        control_risk(made([0.9], [True]), alpha=alpha, delta=delta)


def test_selective_risk_by_hand():
    s = made([0.9, 0.8, 0.7, 0.6], [True, False, True, False], [0, 0, 1, 1], [1, 1, 1, 0])
    assert selective_risk(s, 0.75) == 0.5
    assert selective_risk(s, 0.0) == pytest.approx(1 / 3)
    assert selective_risk(s, ALL_TO_S2) == 0
    assert selective_risk(s, np.array([0.0, 0.0])) == 0.5
    assert selective_risk(s, np.array([0.85, 0.0])) == 0


# Populations: error(u) at confidence u uniform in [0, 1], and the risk of tau in closed form.
POPULATIONS = {
    # error = (1 - u) / 4: R(tau) = (1 - tau) / 8, so 0.05 is crossed at tau 0.6.
    "falling": (lambda u: (1 - u) / 4, lambda tau: (1 - tau) / 8),
    # A constant risk just above the bound: nothing may be chosen.
    "above": (lambda u: np.full_like(u, 0.0501), lambda tau: 0.0501),
    # The most confident fifth errs in 8 %, the next in 1 %, the rest in 30 %: R is not monotone.
    "confident mistakes": (
        lambda u: np.select([u > 0.8, u > 0.3], [0.08, 0.01], 0.3),
        lambda tau: (
            (
                0.08 * (1 - max(tau, 0.8))
                + 0.01 * max(0, 0.8 - max(tau, 0.3))
                + 0.3 * max(0, 0.3 - tau)
            )
            / (1 - tau)
        ),
    ),
}


@pytest.mark.parametrize("size", [80, 300, 1000])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_promise_holds_where_the_risk_is_known(name, size):
    error, risk = POPULATIONS[name]
    # A risk just above alpha breaks the promise with a probability just below delta, so that 200
    # resamples would fall on either side; 2000 tell 5 % from 6.5 % (three standard errors).
    tight = name == "above"
    found = check_promise(
        drawn(100_000, error, seed=size),
        lambda part: control_risk(part, alpha=ALPHA, delta=DELTA).tau,
        alpha=ALPHA,
        size=size,
        resamples=2000 if tight else 200,
        seed=1,
        risk=risk,
    )
    assert found.held >= (0.935 if tight else 0.95)
    if name == "falling" and size == 1000:
        assert found.refused < 0.6
        assert max(found.risks) > 0.03


def test_the_promise_holds_although_s1_is_overconfident():
    """S1 says 1 - (1 - u)^3 / 2 but is right with probability 1 - (1 - u) / 4, as above.

    So tau corresponds to u = 1 - (2 - 2 tau)^(1/3), and trusting the stated confidence breaks the
    promise nearly always where risk control keeps it.
    """

    def law(u):
        return 1 - (1 - u) ** 3 / 2

    def risk(tau):
        u = 1 - (2 - 2 * min(tau, 1.0)) ** (1 / 3)
        return (1 - u) / 8

    pool = drawn(100_000, lambda u: (1 - u) / 4, seed=5, law=law)
    assert pool.confidence.mean() > pool.right.mean()

    def trusting(part):
        """The lowest tau whose mean stated error is at most alpha."""
        order = np.sort(part.confidence)[::-1]
        stated = np.cumsum(1 - order) / np.arange(1, len(order) + 1)
        return float(order[stated <= ALPHA][-1])

    def plug_in(part):
        """The lowest tau whose measured risk is at most alpha, without a test."""
        taus, selected, errors = thresholds(part)
        return float(taus[errors <= ALPHA * selected][-1])

    common = {"alpha": ALPHA, "size": 500, "resamples": 200, "seed": 2, "risk": risk}
    controlled = check_promise(
        pool, lambda part: control_risk(part, alpha=ALPHA, delta=DELTA).tau, **common
    )
    assert controlled.held >= 0.95
    assert controlled.refused < 0.8
    assert check_promise(pool, trusting, **common).held < 0.05
    assert check_promise(pool, plug_in, **common).held < 0.8


def test_the_promise_holds_for_every_class_at_once():
    """Three classes whose error is (1 - u) / 4, (1 - u) / 8 and 2 %."""
    rng = np.random.default_rng(0)
    n = 100_000
    predicted, u = rng.integers(3, size=n), rng.uniform(size=n)
    error = np.choose(predicted, [(1 - u) / 4, (1 - u) / 8, np.full(n, 0.02)])
    pool = made(u, rng.uniform(size=n) >= error, predicted)

    def risk(taus):
        own = np.minimum(taus, 1)
        each = np.array([(1 - own[0]) / 8, (1 - own[1]) / 16, 0.02])
        return float(each[taus <= 1].max())

    found = check_promise(
        pool,
        lambda part: control_class_risk(part, ["a", "b", "c"], alpha=ALPHA, delta=DELTA).thresholds,
        alpha=ALPHA,
        size=1500,
        risk=risk,
    )
    assert found.held >= 0.95
    assert found.refused < 0.25


def test_on_a_pool_the_risk_is_measured_on_the_rest():
    pool = drawn(4000, lambda u: (1 - u) / 8, seed=3)
    seen = []

    def choose(part):
        seen.append(part)
        return 0.5

    found = check_promise(pool, choose, alpha=ALPHA, size=1000, resamples=3)
    assert len(seen) == 3
    for part, risk in zip(seen, found.risks, strict=True):
        assert len(part) == 1000
        rest = pool.take(~np.isin(pool.confidence, part.confidence))
        assert risk == selective_risk(rest, 0.5)
    assert found.shares == (float((pool.confidence >= 0.5).mean()),) * 3
    assert found.held == 1
    assert check_promise(pool, choose, alpha=0.001, size=1000, resamples=3).held == 0
    refusing = check_promise(
        pool,
        lambda part: control_risk(part, alpha=ALPHA, delta=DELTA).tau,
        alpha=ALPHA,
        size=50,
        resamples=4,
    )
    assert (refusing.held, refusing.refused, refusing.risks) == (1, 1, ())
    with pytest.raises(ValueError, match="size=4000"):
        check_promise(pool, choose, alpha=ALPHA, size=4000)
