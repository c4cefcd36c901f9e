import json
from pathlib import Path

import pytest
import torch
from attention_flops import flop_counter

from benchmarks import scaling
from benchmarks.performance import DENSE, stages, together
from benchmarks.performance_page import written
from benchmarks.scaling_picture import curves
from benchmarks.true_shape import at_limits, where_time_goes
from safelens.bench.systems import clip_of
from safelens.cascade import SafeLens

torch.set_num_threads(1)

MACHINE = {
    "cores": 2, "cpu": "x", "memory_gib": 1, "python": "3", "torch": "2", "transformers": "5",
}  # fmt: skip


@pytest.fixture(scope="module")
def grown(bundle_dir, videos):
    """The scaling benchmark on small models, its curves cut short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "FRAMES", (2, 4))
        patch.setattr(scaling, "CATEGORIES", (6, 100))
        patch.setattr(scaling, "BATCHES", (1, 2))
        patch.setattr(scaling, "SHARES", (0.0, 1.0))
        patch.setattr(scaling, "LOOK", 5)
        with SafeLens.load(bundle_dir, device="cpu") as lens:
            lens.screener.guard = None
            yield scaling.measure(lens, [Path(v) for v in videos[:3]], 13, 1)


def test_more_work_costs_more_operations(grown):
    s1, both = (grown["frames"][name] for name in ("s1", "s1_and_s2"))
    assert s1[0]["gflops"] < s1[1]["gflops"] < both[1]["gflops"]
    few, many = grown["categories"]
    assert (few["x"], many["x"]) == (6, 100)
    assert few["gflops"] < many["gflops"]
    none, every = grown["escalated"]
    assert none["gflops"] < every["gflops"]
    assert all(p["min_s"] <= p["median_s"] <= p["max_s"] for p in grown["batch"])


def test_a_long_run_is_looked_at_on_its_way(grown):
    assert [p["x"] for p in grown["videos"]] == [5, 10, 13]
    seconds = [p["seconds"] for p in grown["videos"]]
    assert seconds == sorted(seconds)
    assert grown["resident_mb"]["most"] >= grown["resident_mb"]["last"] > 50
    assert curves(grown).count("<svg") == 1


def test_the_page_says_what_was_found(grown):
    spread = {"median": 3.25, "min": 3.0, "max": 3.5}
    bench = {
        "machine": MACHINE,
        "models": "some",
        "videos": 6,
        "unsure": 2,
        "systems": {
            "ours": {
                "videos": 6,
                "videos_per_second": spread,
                "tokens_per_video": 7.0,
                "stage_seconds_per_video": {"screen": 1.5},
            }
        },
        "ratio": {"ours_over_naive": spread},
        "limits": {"flops_per_s": 1e11, "bytes_per_s": 1e10},
        "share_of_limit": {"screen": {"share_of_limit": 0.5, "bound": "products"}},
        "agreement": {
            "clips": 4,
            "dtype": "bfloat16",
            "screen": {"same_label": 4, "largest_difference": 0.015, "of_states": 0.012},
            "deliberate": {"same_flags": 4, "same_text": 3, "largest_difference": 0.02},
        },
    }
    faster = {"torchcodec": {"median": 12.0}, "pyav_seek": {"median": 2.0}}
    one = {"times_faster_than": faster, "median_s": 0.1, "largest_error_s": 4.0}
    files = {DENSE: {"systems": {"exact": one, "keyframes": one}}}
    least = {"naive": 9.0, "ours": 4.5, "s1": 2.0, "ours_over_naive": 2.0}
    bounds = {"at_limits": least, "hundred_categories_over_six": 1.375}
    bounds["shares_of_time"] = {"screen": {"products": 0.625, "attention": 0.375}}
    found = {"true_shape": bench, "tiny": bench, "decoding": {"files": files}, "scaling": grown}
    found["bounds"] = bounds
    report = together(json.loads(json.dumps(found)))
    assert set(report["ratio"]) == {"ours_over_naive", "keyframes_over_torchcodec"}
    page = written(report, Path("benchmarks/results/cpu.json"), "performance.svg")
    assert "ours_over_naive: 3.25 (3.00 to 3.50)" in page
    assert f"| {DENSE} | keyframes | 0.10 | 12.0 | 2.0 | 4.00 |" in page
    assert "13 videos in one run" in page
    assert "screen: 50% of the limit by products" in page
    assert "9.0 s naive and 4.5 s ours (S1 alone 2.0 s), a ratio of 2.00" in page
    assert "| screen | 62% | 38% |" in page
    assert "takes 1.38 times what it takes under 6" in page


def test_bounds_follow_from_what_is_counted(bundle_dir, videos):
    """Products alone, as PyTorch counts them without a cache; and reading weights alone."""
    ours = {"gflops_per_video": 0.5, "tokens_per_video": 60.0}
    bench = {"unsure": 3, "systems": {"naive": {"tokens_per_video": 100.0}, "ours": ours}}
    with SafeLens.load(bundle_dir, device="cpu") as lens:
        clip = clip_of(lens, videos[0])
        bench["limits"] = {"flops_per_s": 1e9, "bytes_per_s": float("inf")}
        products = at_limits(lens, clip, bench)
        bench["limits"] = {"flops_per_s": float("inf"), "bytes_per_s": 1e9}
        reading = at_limits(lens, clip, bench)
        vlm = lens.screener.vlm
        with flop_counter() as counted, torch.inference_mode():
            vlm.prefill_text(lens.screener.parts.head)
    by_kind = {"attention": 0, "linear": 0}
    for kind, flops in counted.get_flop_counts()["Global"].items():
        by_kind["attention" if "attention" in str(kind) else "linear"] += flops
    policy = by_kind["linear"] + by_kind["attention"] / 2  # of the square the triangle is seen
    assert products["naive"] - products["s1"] == pytest.approx(policy / 1e9, rel=0.01)
    assert products["ours"] == 0.5
    assert reading["ours_over_naive"] == pytest.approx(100 / (60 / 3))


def test_shares_of_time_are_of_all_of_it(bundle_dir, videos):
    with SafeLens.load(bundle_dir, device="cpu") as lens:
        lens.deliberator.guess = False
        found = where_time_goes(lens, clip_of(lens, videos[0]))
    assert set(found) == {"screen", "caption", "deliberate"}
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert 0 < shares["products"] < 1
        assert 0 < shares["other"] < 1


def test_measurements_differ_by_machine():
    assert stages("cpu")["tiny"].digest != stages("cuda")["tiny"].digest
