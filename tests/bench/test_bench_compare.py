import time

import pytest
import torch

from safelens.bench.compare import rounds, spread
from safelens.bench.limits import measure
from safelens.bench.shapes import florence, qwen
from safelens.bench.systems import Done


class Slow:
    """Sleeps as long as it is told."""

    def __init__(self, name, seconds, order):
        self.name, self.seconds, self.order = name, seconds, order

    def run(self, paths):
        self.order.append(self.name)
        time.sleep(self.seconds)
        done = Done(labels=["safe"] * len(paths), tokens=10)
        done.seconds["wait"] = self.seconds
        return done


def test_systems_take_turns_and_ratios_are_of_one_round(tmp_path):
    order, told = [], []
    systems = [Slow("a", 0.09, order), Slow("b", 0.03, order), Slow("ours", 0.03, order)]
    paths = [tmp_path / name for name in ("x", "y")]
    given = [(system, paths) for system in systems[:2]] + [(systems[2], paths * 2)]
    found = rounds(given, 3, told.append)
    assert order == ["a", "b", "ours", "b", "ours", "a", "ours", "a", "b"] == told
    a, ours = found["systems"]["a"], found["systems"]["ours"]
    ratio = found["ratio"]["ours_over_a"]
    rates = [(x / 2) / (y / 4) for x, y in zip(a["seconds"], ours["seconds"], strict=True)]
    assert ratio["values"] == pytest.approx(rates)
    assert (a["videos"], ours["videos"]) == (2, 4)
    assert ratio["median"] > 3
    assert set(found["ratio"]) == {"ours_over_a", "ours_over_b"}
    assert a["stage_seconds_per_video"] == {"wait": pytest.approx(0.045)}
    assert a["tokens_per_video"] == 5
    assert a["videos_per_second"]["max"] <= 2 / 0.09


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "values": [3.0, 1.0, 2.0],
    }


def test_limits_are_rates_of_this_machine():
    found = measure(torch.float32, torch.device("cpu"), tries=1)
    assert 1e8 < found.flops < 1e15
    assert 1e8 < found.bytes < 1e13


def test_true_shapes_have_the_papers_sizes(tokenizer_dir):
    """Without memory for weights; Qwen3-VL-2B has 2.13 billion parameters, Florence-2-large 0.77."""
    for build, billions in ((qwen, 2.13), (florence, 0.77)):
        model, processor = build(tokenizer_dir, torch.bfloat16, "meta")
        parameters = {id(p): p for p in model.parameters()}.values()
        assert sum(p.numel() for p in parameters) / 1e9 == pytest.approx(billions, rel=0.02)
        assert {p.dtype for p in parameters} == {torch.bfloat16}
        assert processor.tokenizer is not None
