"""What thinning a video saves S2, and what one more category costs, at the shape of Qwen3-VL-2B with random weights.

    python -m benchmarks.safewatch_shape [--frames 20] [--length 200] [--repeats 3] --out out/safewatch-shape.json

Nothing else should run on the machine. With --small it runs on the embedded bundle's model: a check of the
script, whose figures mean nothing. S2 is told captions of as many words as Florence-2 writes, and writes --length
tokens; what it writes is as long in each case. Cases take turns, and each turn is kept beside --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.machine import machine
from safelens import prompts
from safelens.bench.shapes import QWEN, RANK, qwen
from safelens.bundle import Bundle
from safelens.deliberate import ADAPTER, Deliberator
from safelens.policy import Category, Policy, Rule
from safelens.safewatch.blocks import PolicyBlocks
from safelens.safewatch.parallel import ParallelPrompt, ParallelText
from safelens.screen import Screener
from safelens.train.reasoner import add_adapter
from safelens.verdict import Caption
from safelens.video import Clip
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context
from safelens.vlm_cost import Spent

KEEP = 0.1
CAPTION = "A person in a red coat walks along a street with shops and parked cars while it rains a little."


def model(small: bool, device: str, side: int) -> VisionLanguageModel:
    """The model with S2's adapter, off."""
    bundle = Bundle.load("tiny")
    tokenizer = Path(bundle.path(bundle.settings.screen.model))
    if small:
        vlm = VisionLanguageModel.load(tokenizer, device=device, frame_pixels=side * side)
    else:
        parts = qwen(tokenizer, torch.bfloat16, device)
        vlm = VisionLanguageModel(*parts, frame_pixels=side * side)
    dtype = vlm.model.dtype
    add_adapter(vlm, RANK, 2 * RANK)
    vlm.model.to(dtype)
    vlm.adopt_adapter(ADAPTER)
    return vlm


def clip(frames: int, side: int) -> Clip:
    """A clip of noise, a frame a second."""
    drawn = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    times = np.arange(frames, dtype=np.float64)
    return Clip("noise", "", drawn, times, float(times[-1]), (side, side), truncated=False)


class Case:
    """S1 and S2 at one share of the video's tokens.

    Args:
        vlm: the model.
        keep: the share; None keeps all.
        video: what is asked about.
        length: tokens that S2 writes, the forced answer among them.
        together: videos that S2 writes about at a time.
    """

    def __init__(
        self, blocks: PolicyBlocks, keep: float | None, video: Clip, length: int, together: int
    ) -> None:
        policy = Policy.load("default")
        prompt = ParallelPrompt(blocks, policy, keep=keep)
        self.policy, self.video, self.together = policy, video, together
        self.screener = Screener(blocks.vlm, policy, prompt=prompt)
        forced = len(blocks.vlm.ids("\n" + prompts.guardrail_answer(policy, [])))
        self.s2 = Deliberator(
            blocks.vlm, policy, prompt=prompt, max_new_tokens=max(1, length - forced)
        )
        self.s2.guess = False
        self.captions = tuple(Caption(time_s=float(t), text=CAPTION) for t in video.timestamps)
        self.last: dict[str, float] = {}
        self.found: dict[str, float] = {}

    def run(self) -> None:
        """Once everything; costs and seconds of the last time are kept."""
        began = time.perf_counter()
        prefilled = self.screener.prefill([self.video])
        self.last["s1"] = time.perf_counter() - began
        scores = dict.fromkeys(self.policy.labels, 1 / len(self.policy.labels))
        before = replace(prefilled.spent[0])
        began = time.perf_counter()
        context = prefilled.context(0)
        self.found["cache_mb"] = _megabytes(context)
        self.s2.deliberate(context, self.captions, scores)
        self.last["s2"] = time.perf_counter() - began
        self.found["s1_gflops"] = before.flops / 1e9
        self.found["s2_gflops"] = (prefilled.spent[0].flops - before.flops) / 1e9
        began = time.perf_counter()
        decoding = self.s2.decoding()
        count = min(self.together, decoding.free)
        for number in range(count):
            context = prefilled.context(0)
            context.spent = Spent()
            program = self.s2.program(self.captions, scores, context.spent)
            decoding.admit(number, context, program)
        while len(decoding):
            for ended in decoding.step():
                if ended.error is not None:
                    raise ended.error
        self.last["s2_together"] = (time.perf_counter() - began) / count
        self.found["together"] = count


def _megabytes(context: Context) -> float:
    return sum(s.numel() * s.element_size() for layer in context.states for s in layer) / 1e6


def many(count: int) -> Policy:
    """A policy of as many categories, with texts as long as the default policy's and each another."""
    own = Policy.load("default").categories
    return Policy("many", "Many", "1", tuple(_numbered(own[i % len(own)], i) for i in range(count)))


def _numbered(category: Category, number: int) -> Category:
    rules = tuple(Rule(rule.kind, f"{rule.text} ({number})") for rule in category.rules)
    return Category(f"c{number}", f"{category.name} {number}", category.core_value, rules)


def adding(vlm: VisionLanguageModel, video: Clip, count: int, repeats: int) -> dict[str, Any]:
    """Seconds to read a block alone, and until a policy of one more category is ready to be asked.

    Each time the category is a new one; what both read has the same length.
    """
    blocks, whole = PolicyBlocks(vlm), many(count + 2 * repeats)
    trunk = ParallelText.of(vlm, whole, "policy_first").trunk
    base = whole.categories[:count]
    known = ParallelPrompt(blocks, replace(whole, categories=base))
    screener = Screener(vlm, known.policy, prompt=known)
    screener.prefill([video])
    seconds: dict[str, list[float]] = {name: [] for name in ("block", "add", "asked", "verdict")}
    for number in range(repeats):
        alone, more = whole.categories[count + 2 * number :][:2]
        more = replace(more, core_value=alone.core_value, rules=alone.rules)
        seconds["asked"].append(_timed(lambda: screener.prefill([video])))
        texts = [prompts.category_block(alone)]
        seconds["block"].append(_timed(lambda: blocks.of(trunk, texts)))  # noqa: B023
        larger = replace(whole, categories=(*base, more))
        began = time.perf_counter()
        prompt = ParallelPrompt(blocks, larger)
        seconds["add"].append(time.perf_counter() - began)
        Screener(vlm, larger, prompt=prompt).prefill([video])
        seconds["verdict"].append(time.perf_counter() - began)
    medians = {f"{name}_seconds": statistics.median(v) for name, v in seconds.items()}
    return {"count": count, "seconds": seconds, "blocks_read": blocks.read} | medians


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def saving(whole: Sequence[float], pruned: Sequence[float]) -> float:
    """Median over turns of the share of seconds that is saved."""
    return statistics.median(1 - b / a for a, b in zip(whole, pruned, strict=True))


def turns(
    cases: dict[str, Case], file: Path, repeats: int, ends: float
) -> list[dict[str, dict[str, Any]]]:
    """Run all cases turn by turn; each turn is kept, and those of an earlier call are not run again."""
    done: list[dict[str, dict[str, Any]]] = json.loads(file.read_text()) if file.exists() else []
    while len(done) < repeats and time.monotonic() < ends:
        order = list(cases.items())
        for _, case in order if len(done) % 2 == 0 else reversed(order):
            case.run()
        done.append({name: case.found | case.last for name, case in cases.items()})
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(done, indent=1) + "\n")
        print(json.dumps(done[-1]), flush=True)
    return done


def summary(done: Sequence[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    """A case's costs, medians of its seconds, and each turn's."""
    seconds = {key: [turn[name][key] for turn in done] for key in ("s1", "s2", "s2_together")}
    costs = {k: v for k, v in done[-1][name].items() if k not in seconds}
    medians = {f"{key}_seconds": statistics.median(each) for key, each in seconds.items()}
    return costs | medians | {"seconds": seconds}


def main() -> None:
    """Measure, and write a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--categories", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="begin no turn after that many; call again"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    before, ends = machine(), time.monotonic() + 60 * args.minutes
    vlm = model(args.small, args.device, args.side)
    video, blocks = clip(args.frames, args.side), PolicyBlocks(vlm)
    cases = {
        name: Case(blocks, keep, video, args.length, args.together)
        for name, keep in (("whole", None), ("pruned", KEEP))
    }
    done = turns(cases, args.out.with_suffix(".turns.json"), args.repeats, ends)
    if len(done) < args.repeats or time.monotonic() > ends:
        print(f"{len(done)} of {args.repeats} turns; call again to go on")
        return
    del cases
    found = {name: summary(done, name) for name in ("whole", "pruned")}
    categories = adding(vlm, video, args.categories, args.repeats)
    ratios = [
        a / b for a, b in zip(*(categories["seconds"][n] for n in ("add", "block")), strict=True)
    ]
    seconds = {name: one["seconds"] for name, one in found.items()}
    report = {
        "machine": before,
        "model": "the embedded bundle" if args.small else QWEN,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "frames": args.frames,
        "side": args.side,
        "length": args.length,
        "together": found["whole"]["together"],
        **found,
        "s2_latency_saving": saving(seconds["whole"]["s2"], seconds["pruned"]["s2"]),
        "s2_together_saving": saving(
            seconds["whole"]["s2_together"], seconds["pruned"]["s2_together"]
        ),
        "categories": categories,
        "add_category_over_block": statistics.median(ratios),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
