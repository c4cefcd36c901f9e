"""Temperature and S1's answers, against closed forms and torch."""

import numpy as np
import pytest
import torch

from safelens.calibrate import (
    CalibrationError,
    Screening,
    class_sets,
    fit_temperature,
    nll,
    tempered,
    under_shares,
)

LABELS = ("a", "b", "safe")


def drawn(n, temperature, seed=0):
    """Logits, and single classes drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3)) * 3
    p = np.asarray(torch.tensor(z / temperature).softmax(-1))
    truth = np.array([rng.multinomial(1, row) for row in p], bool)
    return z, truth


def softmax(z):
    return torch.tensor(z).softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_tempering_probabilities_is_tempering_logits(temperature):
    z, _ = drawn(50, 1)
    np.testing.assert_allclose(
        tempered(softmax(z), temperature), softmax(z / temperature), atol=1e-12
    )
    np.testing.assert_allclose(
        tempered(softmax(z / 1.7), temperature), softmax(z / (1.7 * temperature)), atol=1e-12
    )


def test_zeros_stay_finite():
    p = np.array([[1.0, 0.0, 0.0]])
    assert np.isfinite(tempered(p, 3.0)).all()
    assert tempered(p, 1.0)[0, 0] == pytest.approx(1)
    assert nll(p, [[False, True, False]]) == pytest.approx(87.34, abs=0.01)
    with pytest.raises(ValueError, match="temperature 0"):
        tempered(p, 0.0)


def test_nll_of_single_classes_is_cross_entropy_and_of_sets_the_probability_of_any():
    z, truth = drawn(200, 1)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(z), torch.tensor(truth.argmax(1))
    ).item()
    assert nll(softmax(z), truth) == pytest.approx(expected, rel=1e-9)
    assert nll([[0.5, 0.3, 0.2]], [[True, True, False]]) == pytest.approx(-np.log(0.8))


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_classes_were_drawn_with_is_found(true_temperature):
    z, truth = drawn(10_000, true_temperature)
    fit = fit_temperature(softmax(z), truth, LABELS)
    assert fit.temperature == pytest.approx(true_temperature, rel=0.05)
    grid = np.exp(np.linspace(np.log(0.3), np.log(5), 60))
    losses = [nll(softmax(z / t), truth) for t in grid]
    assert fit.nll_after <= min(losses)
    assert fit.temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.05)
    assert fit.nll_before == pytest.approx(nll(softmax(z), truth))


def test_sets_are_fitted_by_their_own_rule():
    z, truth = drawn(2000, 2.0)
    rng = np.random.default_rng(1)
    more = truth.copy()
    more[:, :2] |= rng.uniform(size=(2000, 2)) < 0.2
    fit = fit_temperature(softmax(z), more, LABELS)
    grid = np.exp(np.linspace(np.log(0.3), np.log(5), 60))
    losses = [nll(softmax(z / t), more) for t in grid]
    assert fit.nll_after <= min(losses)
    assert fit.temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.05)


def test_too_little_to_fit_is_refused_with_what_is_needed():
    z, truth = drawn(49, 1)
    with pytest.raises(CalibrationError, match=r"49 videos are too few.*at least 50"):
        fit_temperature(softmax(z), truth, LABELS)
    z, truth = drawn(400, 1)
    keep = ~truth[:, 1]
    with pytest.raises(CalibrationError, match="none of b: at least one video of every class"):
        fit_temperature(softmax(z[keep]), truth[keep], LABELS)
    alone = np.eye(3, dtype=bool)[z.argmax(1)]
    with pytest.raises(CalibrationError, match=r"T = 0\.05.*keep T = 1"):
        fit_temperature(softmax(z), alone, LABELS)
    with pytest.raises(CalibrationError, match=r"T = 20.*nothing of the truth"):
        fit_temperature(softmax(z), np.eye(3, dtype=bool)[z.argmin(1)], LABELS)


def test_answers_from_probabilities():
    p = [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.5, 0.4]]
    truth = class_sets([("a", "b"), (), ("a",)], LABELS)
    assert truth.tolist() == [[True, True, False], [False, False, True], [True, False, False]]
    s = Screening.from_probabilities(p, truth, [True, False, True])
    assert s.predicted.tolist() == [0, 2, 1]
    assert s.right.tolist() == [True, True, False]
    assert s.stands(0.6).tolist() == [True, False, False]
    assert s.stands(np.array([0.7, 0.4, 0.0])).tolist() == [False, False, True]
    assert s.take([2, 0]).confidence.tolist() == [0.5, 0.6]
    assert s.take(s.familiar).predicted.tolist() == [0, 1]


def test_what_cannot_be_answers_is_refused():
    with pytest.raises(ValueError, match=r"\['c'\] are no classes"):
        class_sets([("c",)], LABELS)
    ok = np.full((1, 3), 1 / 3)
    with pytest.raises(ValueError, match="row 0 of truth has no class"):
        nll(ok, [[False, False, False]])
    with pytest.raises(ValueError, match="sum to 1"):
        nll(ok * 2, [[True, False, False]])
    with pytest.raises(ValueError, match="one shape"):
        nll(ok, [[True, False]])
    one = np.array([True])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        Screening(np.array([np.nan]), np.array([0]), one, one)
    with pytest.raises(ValueError, match="four arrays of one shape"):
        Screening(np.array([0.5, 0.5]), np.array([0]), one, one)


def test_importing_it_is_light():
    import subprocess
    import sys

    code = (
        "import sys, safelens.calibrate, safelens.reliability, safelens.risk, safelens.tradeoff, "
        "safelens.calibrated_bundle\n"
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_probabilities_under_other_shares_are_those_of_a_model_of_such_data():
    """Two classes with known densities: Bayes' rule with either prior."""
    x = np.linspace(-3, 3, 50)
    densities = np.exp(-((x[:, None] - np.array([-1.0, 1.0])) ** 2) / 2)

    def posterior(shares):
        joint = densities * shares
        return joint / joint.sum(1, keepdims=True)

    few, half = np.array([0.95, 0.05]), np.array([0.5, 0.5])
    np.testing.assert_allclose(under_shares(posterior(few), few, half), posterior(half))
    np.testing.assert_allclose(under_shares(posterior(half), half, few), posterior(few))
    with pytest.raises(ValueError, match="must be positive"):
        under_shares(posterior(half), [1.0, 0.0], half)
