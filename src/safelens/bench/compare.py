"""Ways of running the models, taken in turns on the same videos, and each stage's share of what the machine can do.

Knows rounds, ratios and rates. Knows nothing of how a system works.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from safelens.bench.limits import Limits
from safelens.bench.systems import BenchSystem, Done, Plain
from safelens.cascade import SafeLens
from safelens.freed_memory import keep_freed_memory
from safelens.packed import weight_bytes
from safelens.video import Clip
from safelens.vlm_cost import Spent


def rounds(
    systems: Sequence[tuple[BenchSystem, Sequence[Path]]],
    repeats: int,
    advance: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run all systems on their videos some times, in an order that moves on by one a round.

    Args:
        systems: each with its videos; the last is SafeLens, and is compared with each of the others.
        repeats: rounds.
        advance: is told the name of the system that has run.

    Returns:
        Of each system seconds of every round and of its stages a video; ratios of videos a second, the last
        system's over another's in the same round.
    """
    runs: dict[str, list[tuple[float, Done]]] = {system.name: [] for system, _ in systems}
    videos = {system.name: len(paths) for system, paths in systems}
    ours = systems[-1][0].name
    for number in range(repeats):
        turn = number % len(systems)
        for system, paths in [*systems[turn:], *systems[:turn]]:
            keep_freed_memory(system.name == ours)
            began = time.perf_counter()
            done = system.run(paths)
            runs[system.name].append((time.perf_counter() - began, done))
            advance(system.name)

    def each(name: str) -> list[float]:
        return [seconds / videos[name] for seconds, _ in runs[name]]

    ratios = {
        f"{ours}_over_{name}": spread(
            [theirs / mine for theirs, mine in zip(each(name), each(ours), strict=True)]
        )
        for name in runs
        if name != ours
    }
    return {
        "systems": {name: _summary(found, videos[name]) for name, found in runs.items()},
        "ratio": ratios,
    }


def _summary(found: list[tuple[float, Done]], videos: int) -> dict[str, Any]:
    last = found[-1][1]
    stages = {
        stage: statistics.median(done.seconds[stage] for _, done in found) / videos
        for stage in last.seconds
    }
    return {
        "videos": videos,
        "seconds": [seconds for seconds, _ in found],
        "videos_per_second": spread([videos / seconds for seconds, _ in found]),
        "stage_seconds_per_video": stages,
        "tokens_per_video": last.tokens / videos,
        "gflops_per_video": None if last.gflops is None else last.gflops / videos,
        "labels": last.labels,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Values with their median and extremes."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def screening(
    lens: SafeLens, theirs: SafeLens, clips: Sequence[Clip], repeats: int
) -> dict[str, Any]:
    """S1 for one video on the policy's cache, beside the plain forward pass over the whole prompt."""
    plain = Plain(theirs, None)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(repeats):
        clip = clips[number % len(clips)]
        works = [
            ("ours", lambda clip=clip: lens.screener.screen([clip])),
            ("plain", lambda clip=clip: plain.states(plain.inputs(clip, ""))),
        ]
        for name, work in works if number % 2 else reversed(works):
            keep_freed_memory(name == "ours")
            seconds[name].append(_seconds(work, lens))
    keep_freed_memory()
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True)]
    return {"seconds": seconds, "s1_over_plain": spread(ratios)}


def shares(lens: SafeLens, clips: Sequence[Clip], limits: Limits) -> dict[str, Any]:
    """What each stage reaches of the machine's limits: products in prefill, reading memory in decoding."""
    screener, captioner, deliberator = lens.screener, lens.captioner, lens.deliberator
    screened = screener.screen(clips)
    seconds = _seconds(lambda: screener.screen(clips), lens)
    flops = sum(s1.spent.flops for s1 in screened)
    found: dict[str, Any] = {"screen": {"flops_per_s": flops / seconds, "bound": "products"}}
    if captioner is not None:
        spent = Spent()
        seconds = _seconds(lambda: captioner.describe(clips[:1], spent=[spent]), lens)
        found["caption"] = {"flops_per_s": spent.flops / seconds, "bound": "products"}
    decoding = deliberator.decoding()
    for s1 in screened[: decoding.free]:
        context = s1.context
        decoding.admit(s1, context, deliberator.program((), s1.scores, context.spent))
    decoding.step()
    steps = [_seconds(decoding.step, lens) for _ in range(4)]
    weights = weight_bytes(_language(deliberator.vlm.model))
    found["deliberate"] = {
        "bytes_per_s": (weights + decoding.held_bytes) / min(steps),
        "rows": len(decoding),
        "seconds_per_pass": steps,
        "bound": "memory",
    }
    for stage in found.values():
        rate, limit = (
            (stage["flops_per_s"], limits.flops)
            if stage["bound"] == "products"
            else (stage["bytes_per_s"], limits.bytes)
        )
        stage["share_of_limit"] = rate / limit
    return found


def _language(model: Any) -> torch.nn.Module:
    """What a token runs through; embeddings that are the head's too count once, as they are read once."""
    language: torch.nn.Module = model.model.language_model
    return language


def _seconds(work: Callable[[], Any], lens: SafeLens) -> float:
    began = time.perf_counter()
    work()
    if lens.screener.vlm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
