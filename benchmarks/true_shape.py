"""At the true shape: screening under longer and longer policies, and what no program on this machine could pass.

    python -m benchmarks.true_shape --bench FILE [--repeats 3 --device cpu] --out FILE

Knows how bounds follow from counts and limits. The file of `safelens bench --true-shape --out` gives what was
measured there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling import by_categories
from recipes.machine import machine
from safelens.bench.shapes import at_true_shape
from safelens.bench.systems import clip_of
from safelens.cascade import SafeLens
from safelens.packed import weight_bytes
from safelens.safeworld import sample_scene
from safelens.safeworld.encode import USUAL, encode
from safelens.video import Clip
from safelens.vlm_cost import language_flops

SIDE = 448
_KINDS = {
    "products": ("linear", "addmm", "aten::mm", "aten::bmm", "baddbmm"),
    "attention": ("scaled_dot_product",),
    "convolutions": ("convolution",),
}
"""Parts of operations' names; what has none of them goes over numbers one by one, or moves them."""


def at_limits(lens: SafeLens, clip: Clip, bench: Mapping[str, Any]) -> dict[str, float]:
    """Seconds a video if products ran at the limit of products, and each pass read the weights at that of memory.

    Every other cost is taken as nothing, so nothing that runs the same models in the same type is faster. *naive* reads
    the weights once a token; *ours* once a token of all videos that are written about, which here share every pass.

    Args:
        lens: the models.
        clip: one as was measured.
        bench: the report of `safelens bench` on the same models.
    """
    limits, systems = bench["limits"], bench["systems"]
    model = lens.screener.vlm.model
    [s1] = lens.screener.screen([clip])
    policy = language_flops(model.config.get_text_config(), lens.screener.head.length, 0)
    weights = weight_bytes(model.model.language_model)

    def seconds(flops: float, passes: float) -> float:
        return float(flops / limits["flops_per_s"] + passes * weights / limits["bytes_per_s"])

    ours, naive = systems["ours"], systems["naive"]
    found = {
        "naive": seconds(s1.spent.flops + policy, naive["tokens_per_video"]),
        "ours": seconds(ours["gflops_per_video"] * 1e9, ours["tokens_per_video"] / bench["unsure"]),
        "s1": seconds(s1.spent.flops, 0),
    }
    return found | {"ours_over_naive": found["naive"] / found["ours"]}


def by_kind(work: Callable[[], object]) -> dict[str, float]:
    """Shares of time by kinds of operations, on a CPU; work is done once before."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    spent = dict.fromkeys([*_KINDS, "other"], 0.0)
    for event in profile.key_averages():
        found = (kind for kind, parts in _KINDS.items() if any(p in event.key for p in parts))
        spent[next(found, "other")] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: one / total for kind, one in spent.items()}


def where_time_goes(lens: SafeLens, clip: Clip) -> dict[str, dict[str, float]]:
    """Of S1 on one video, of its captions, and of S2's passes over eight rows."""
    captioner, s2 = lens.captioner, lens.deliberator
    assert captioner is not None
    decoding = s2.decoding()
    for _ in range(decoding.free):
        [s1] = lens.screener.screen([clip])
        context = s1.context
        decoding.admit(s1, context, s2.program((), s1.scores, context.spent))
    decoding.step()
    return {
        "screen": by_kind(lambda: lens.screener.screen([clip])),
        "caption": by_kind(lambda: captioner.describe([clip])),
        "deliberate": by_kind(decoding.step),
    }


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        at_true_shape(args.device, caption_tokens=40) as lens,
    ):
        file = Path(folder) / "video.mp4"
        encode(sample_scene(77, 0), replace(USUAL, size=(SIDE, SIDE)), file)
        lens.deliberator.guess = False
        clip = clip_of(lens, file)
        categories = by_categories(lens, clip, args.repeats)
        cost = {point["x"]: point["median_s"] for point in categories}
        report = {
            "machine": machine(torch.get_num_threads()),
            "categories": categories,
            "hundred_categories_over_six": cost[100] / cost[6],
            "at_limits": at_limits(lens, clip, json.loads(args.bench.read_text())),
            "shares_of_time": where_time_goes(lens, clip),
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
