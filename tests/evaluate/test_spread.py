import json

import numpy as np
import pytest

from safelens.evaluate.cases import EvaluationError
from safelens.evaluate.spread import combine, spread


def test_mean_and_sample_standard_deviation():
    values = list(np.random.default_rng(0).random(5))
    assert spread(values) == pytest.approx(
        {"mean": np.mean(values), "sd": np.std(values, ddof=1), "n": 5}
    )


def test_undefined_figures_are_left_out_and_counted():
    assert spread([1.0, None, 3.0])["n"] == 2
    assert spread([2.0, None]) == {"mean": 2.0, "sd": None, "n": 1}
    assert spread([None, None]) == {"mean": None, "sd": None, "n": 0}


def test_runs_are_combined_key_by_key():
    runs = [
        {"a": 1, "deep": {"b": None, "c": 0.5}, "names": ("x",), "rows": [[1]]},
        {"a": 3, "deep": {"b": 2.0, "c": 0.5}, "names": ("x",), "rows": [[2]]},
    ]
    found = combine(runs)
    assert found == {
        "a": {"mean": 2, "sd": pytest.approx(2**0.5), "n": 2},
        "deep": {"b": {"mean": 2, "sd": None, "n": 1}, "c": {"mean": 0.5, "sd": 0, "n": 2}},
    }
    json.dumps(found, allow_nan=False)


def test_runs_with_other_figures_are_refused():
    with pytest.raises(EvaluationError, match=r"run 1 and run 3 .*: one alone has deep\.c;"):
        combine([{"deep": {"b": 1}}, {"deep": {"b": 1}}, {"deep": {"b": 1, "c": 1}}])
    with pytest.raises(EvaluationError, match="no runs"):
        combine([])
