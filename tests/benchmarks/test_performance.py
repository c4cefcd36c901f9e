import json
from pathlib import Path

import pytest
import torch

from benchmarks import scaling
from benchmarks.performance import DENSE, stages, together
from benchmarks.performance_page import written
from benchmarks.scaling_picture import curves
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
                "videos_per_second": spread,
                "tokens_per_video": 7.0,
                "stage_seconds_per_video": {"screen": 1.5},
            }
        },
        "ratio": {"ours_over_naive": spread},
        "limits": {"flops_per_s": 1e11, "bytes_per_s": 1e10},
        "share_of_limit": {"screen": {"share_of_limit": 0.5, "bound": "products"}},
    }
    faster = {"torchcodec": {"median": 12.0}, "pyav_seek": {"median": 2.0}}
    one = {"times_faster_than": faster, "median_s": 0.1, "largest_error_s": 4.0}
    files = {DENSE: {"systems": {"exact": one, "keyframes": one}}}
    found = {"true_shape": bench, "tiny": bench, "decoding": {"files": files}, "scaling": grown}
    report = together(json.loads(json.dumps(found)))
    assert set(report["ratio"]) == {"ours_over_naive", "keyframes_over_torchcodec"}
    page = written(report, Path("benchmarks/results/cpu.json"), "performance.svg")
    assert "ours_over_naive: 3.25 (3.00 to 3.50)" in page
    assert f"| {DENSE} | keyframes | 0.10 | 12.0 | 2.0 | 4.00 |" in page
    assert "13 videos in one run" in page
    assert "screen: 50% of the limit by products" in page


def test_measurements_differ_by_machine():
    assert stages("cpu")["tiny"].digest != stages("cuda")["tiny"].digest
