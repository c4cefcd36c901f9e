"""The SafeWatch report's stages on a few clips and random weights, and its page."""

import json

import pytest
import torch

from benchmarks import safewatch, safewatch_asks, safewatch_shape
from benchmarks.safewatch_page import written
from recipes.safewatch_tiny.__main__ import trained
from recipes.stages import in_order
from recipes.tiny import data
from safelens.train.tiny_vlm import build_vlm

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def needs(tmp_path_factory, tokenizer_dir):
    folder = tmp_path_factory.mktemp("stages")
    for name in ("held", "pruning"):
        (folder / name).mkdir()
    data.draw(folder / "held", {"clips": 300, "seed": 9}, {})
    model, processor = build_vlm(tokenizer_dir, seed=0)
    model.save_pretrained(folder / "pruning" / "model")
    processor.save_pretrained(folder / "pruning" / "model")
    return {name: folder / name for name in ("held", "pruning")}


@pytest.fixture(autouse=True)
def from_the_first_clip(monkeypatch):
    monkeypatch.setattr(safewatch_asks, "FIRST", 0)


def found(stage, out, settings, needs, file):
    stage(out, {"model": "pruning", "encoding": "parallel"} | settings, needs)
    return json.loads((out / file).read_text())


def test_order_is_seen_in_one_text_alone(needs, tmp_path):
    settings = {"clips": 3, "shuffles": 4, "seed": 0, "laid": False}
    spreads = {}
    for name, more in (
        ("parallel", {}),
        ("laid", {"laid": True}),
        ("sequential", {"encoding": "sequential"}),
    ):
        (tmp_path / name).mkdir()
        one = found(safewatch_asks.order, tmp_path / name, settings | more, needs, "order.json")
        spreads[name] = one["largest_difference"]
        assert len(one["by_place"]) == 6
        assert sum(one["by_place"]) == pytest.approx(0, abs=1e-5)
    assert spreads["parallel"] == 0
    assert 0 < spreads["laid"] < 1e-3 < spreads["sequential"]


def test_fewer_tokens_at_each_share(needs, tmp_path):
    settings = {"clips": 30, "policies": 6}
    one = found(safewatch_asks.pruning, tmp_path, settings, needs, "pruning.json")
    assert list(one) == ["1", "0.8", "0.6", "0.4", "0.2", "0.1"]
    tokens = [row["tokens"] for row in one.values()]
    assert tokens == sorted(tokens, reverse=True)
    assert all(0 <= row["drawn"]["auroc"] <= 1 for row in one.values())


@pytest.mark.parametrize(("stage", "keep"), [("screen", None), ("deliberate", 0.2)])
def test_unseen_categories_and_other_policies(needs, tmp_path, stage, keep):
    settings = {"clips": 300, "under_policies": 6, "each": 1, "stage": stage, "keep": keep}
    one = found(safewatch_asks.zero_shot, tmp_path, settings, needs, "zero_shot.json")
    assert len(one["unseen"]) == 9
    assert set(one["policies"]) == {"strict", "cautious", "standard", "relaxed", "permissive"}
    assert one["policies"]["standard"]["differ_from_standard"] == 0
    assert ("explanations" in one) == (stage == "deliberate")


def test_seeds_share_what_they_begin_with_and_nothing_else():
    one, other = (
        {stage.digest for stage in in_order(*safewatch.stages_of(safewatch.seed_of(n)))}
        for n in range(2)
    )
    begun = {stage.digest for stage in in_order(*trained(0).questions.needs, safewatch.TEST)}
    assert begun < one & other
    assert len(one - other) == len(safewatch.stages_of(safewatch.seed_of(0))) - 1 + 8


def test_a_report_of_made_up_figures_is_written(tmp_path):
    def spread(value):
        return {"values": [value], "mean": value, "sd": None}

    half = spread(0.5)
    kinds = {"all": {"balanced": half, "auroc": half}}
    asked = {
        "unseen": kinds,
        "seen": kinds,
        "policies": {"strict": {"average": half, "right_where_they_differ": None}},
        "explanations": {"right": half, "words": half},
    }
    order = {
        "clips": 1,
        "shuffles": 2,
        "largest_difference": half,
        "mean_deviation": half,
        "labels_changed": half,
        "clips_whose_label_changes": half,
        "by_place": [half],
    }
    case = {name: 1.0 for name in ("s1_seconds", "s1_gflops", "s2_seconds", "s2_gflops",
            "s2_together_seconds", "cache_mb")}  # fmt: skip
    machine = dict.fromkeys(("cores", "cpu", "memory_gib", "python", "torch", "transformers"), "x")
    page = written(
        {
            "about": "About.",
            "machine": machine,
            "order": dict.fromkeys(("parallel", "laid", "sequential"), order),
            "pruning": {"0.1": {"accuracy": {"average": half}, "tokens": half, "gflops": half,
                        "drawn": {"balanced": half, "auroc": half}}},
            "screened": {"base": asked},
            "written": {"base": asked},
            "bundle": {"0.1": {"screen": {"average": half, "of_domain": half, "gflops": half}}},
            "shape": {
                "machine": machine, "model": "M", "dtype": "bfloat16", "frames": 20, "side": 448,
                "length": 200, "together": 8, "whole": case, "pruned": case,
                "s2_latency_saving": 0.15, "s2_together_saving": 0.2, "add_category_over_block": 1.1,
                "categories": {"count": 100, "block_seconds": 0.4, "add_seconds": 0.44},
            },
        }
    )  # fmt: skip
    assert "S2's latency falls by 15.0% for one video" in page
    assert "| *chance* | 50.0% |" in page


def test_the_shape_script_measures_what_it_says(tmp_path, monkeypatch):
    out = tmp_path / "shape.json"
    arguments = ["--small", "--frames", "4", "--side", "48", "--length", "24", "--repeats", "2"]
    monkeypatch.setattr(
        "sys.argv",
        ["shape", *arguments, "--together", "2", "--categories", "12", "--out", str(out)],
    )
    safewatch_shape.main()
    one = json.loads(out.read_text())
    assert one["pruned"]["cache_mb"] < one["whole"]["cache_mb"]
    assert one["pruned"]["s2_gflops"] < one["whole"]["s2_gflops"]
    assert one["categories"]["blocks_read"] == 12 + 2 * 2
    assert one["add_category_over_block"] > 0
