"""How SafeLens's cost grows: with frames, categories, videos of a batch, escalated videos, and videos of a run.

    python -m benchmarks.scaling [--videos 10000 --repeats 5] --out benchmarks/results/scaling-cpu.json

Knows what is varied and how it is measured. Knows nothing of how curves are drawn (`scaling_picture`).

The embedded bundle on drawn SafeWorld videos. Points of a curve take turns, in another order each repeat. Of the
run over many videos, files are read again and again, each time from its path to its verdict, and the memory of this
process and of those that decode is looked at once every hundred verdicts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.scaling_picture import curves
from recipes.machine import machine, resident_mb
from safelens.bench.systems import share_unsure
from safelens.cascade import SafeLens
from safelens.policy import Policy
from safelens.probe import ProbeConfig, RollingAttentionProbe
from safelens.safeworld.writer import write_dataset
from safelens.screen import ProbeReader, Screener
from safelens.thresholds import Thresholds
from safelens.video import Clip

FRAMES = (2, 4, 8, 16, 32)
CATEGORIES = (1, 6, 12, 25, 50, 100)
BATCHES = (1, 2, 4, 8, 16)
SHARES = (0.0, 0.1, 0.34, 0.6, 1.0)
FILES = 200
LOOK = 100
"""Verdicts between two looks at the memory."""

Work = Callable[[], float | None]
"""Does what is timed; gives its operations in GFLOP, if they are counted."""


def taken(points: Mapping[float, Work], repeats: int) -> list[dict[str, Any]]:
    """Time every point once a repeat, after one run that is not timed."""
    seconds: dict[float, list[float]] = {x: [] for x in points}
    gflops = {x: work() for x, work in points.items()}
    rng = random.Random(0)
    for _ in range(repeats):
        for x in rng.sample(list(points), len(points)):
            began = time.perf_counter()
            points[x]()
            seconds[x].append(time.perf_counter() - began)
    return [
        {
            "x": x,
            "median_s": statistics.median(found),
            "min_s": min(found),
            "max_s": max(found),
            "gflops": gflops[x],
        }
        for x, found in seconds.items()
    ]


def by_frames(lens: SafeLens, clip: Clip, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """S1 and the whole of S2, for one video of more and more frames."""

    def of(frames: int) -> Clip:
        rows = np.linspace(0, len(clip.frames) - 1, frames).round().astype(int)
        return replace(clip, frames=clip.frames[rows], timestamps=np.arange(float(frames)))

    def screen(frames: int) -> float:
        [s1] = lens.screener.screen([of(frames)])
        return s1.spent.flops / 1e9

    def both(frames: int) -> float:
        [s1] = lens.screener.screen([of(frames)])
        assert lens.captioner is not None
        [captions] = lens.captioner.describe([of(frames)], spent=[s1.spent])
        lens.deliberator.deliberate(s1.context, captions, s1.scores)
        return s1.spent.flops / 1e9

    return {
        name: taken({n: partial(work, n) for n in FRAMES}, repeats)
        for name, work in (("s1", screen), ("s1_and_s2", both))
    }


def policy_of(categories: int, like: Policy) -> Policy:
    """A policy of as many categories as asked for: the given one's again and again, each with a name of its own."""
    found = [
        replace(one, id=f"c{i}", name=f"{one.name} {i}")
        for i, one in enumerate(islice(cycle(like.categories), categories))
    ]
    return replace(like, categories=tuple(found))


def by_categories(lens: SafeLens, clip: Clip, repeats: int) -> list[dict[str, Any]]:
    """S1 for one video under longer and longer policies, each read once before; the probe has random weights."""
    vlm = lens.screener.vlm
    points: dict[float, Work] = {}

    def screened(screener: Screener) -> float:
        return screener.screen([clip])[0].spent.flops / 1e9

    for count in CATEGORIES:
        policy = policy_of(count, lens.policy)
        torch.manual_seed(0)
        probe = RollingAttentionProbe(ProbeConfig(input_dim=vlm.hidden_size, labels=policy.labels))
        screener = Screener(vlm, policy, reader=ProbeReader(probe.to(vlm.device)))
        points[count] = partial(screened, screener)
    return taken(points, repeats)


def by_batch(lens: SafeLens, clips: list[Clip], repeats: int) -> list[dict[str, Any]]:
    """S1 on batches of videos; seconds are those of a video."""

    def screen(count: int) -> float:
        return sum(s1.spent.flops for s1 in lens.screener.screen(clips[:count])) / 1e9 / count

    found = taken({n: partial(screen, n) for n in BATCHES}, repeats)
    for point in found:
        for name in ("median_s", "min_s", "max_s"):
            point[name] /= point["x"]
    return found


def by_escalation(lens: SafeLens, paths: list[Path], repeats: int) -> list[dict[str, Any]]:
    """The cascade, from file to verdict, with more and more videos for S2; seconds and operations a video."""
    points: dict[float, Work] = {}

    def moderated(thresholds: Thresholds) -> float:
        lens.thresholds = thresholds
        verdicts = [found.verdict for found in lens.moderate_many(paths)]
        return sum(v.cost.gflops or 0.0 for v in verdicts) / len(paths)

    for share in SHARES:
        share_unsure(lens, paths, share)
        points[share] = partial(moderated, lens.thresholds)
    found = taken(points, repeats)
    for point in found:
        for name in ("median_s", "min_s", "max_s"):
            point[name] /= len(paths)
    return found


def by_videos(lens: SafeLens, paths: list[Path], videos: int) -> list[dict[str, Any]]:
    """Seconds and resident memory on the way through a run over many videos."""
    began, points = time.perf_counter(), []
    for number, found in enumerate(lens.moderate_many(islice(cycle(paths), videos)), start=1):
        if found.verdict.status.endswith("_error"):
            raise RuntimeError(found.verdict.error)
        if number % LOOK == 0 or number == videos:
            point = {
                "x": number,
                "seconds": time.perf_counter() - began,
                "resident_mb": sum(resident_mb(pid) for pid in _processes()),
            }
            points.append(point)
            print(json.dumps(point), flush=True)
    return points


def _processes() -> Iterator[int]:
    """This process and its children."""
    yield os.getpid()
    for thread in Path("/proc/self/task").iterdir():
        yield from map(int, (thread / "children").read_text().split())


def measure(lens: SafeLens, paths: list[Path], videos: int, repeats: int) -> dict[str, Any]:
    """All curves."""
    clips = [lens.decode(str(path)).clip for path in paths[: max(BATCHES)]]
    held = [clip for clip in clips if clip is not None]
    few = paths[:24]
    before = lens.thresholds, lens.screener.guard
    found: dict[str, Any] = {
        "frames": by_frames(lens, held[0], repeats),
        "categories": by_categories(lens, held[0], repeats),
        "batch": by_batch(lens, held, repeats),
        "escalated": by_escalation(lens, few, repeats),
    }
    lens.thresholds, lens.screener.guard = before
    found["videos"] = by_videos(lens, paths, videos)
    cost = {point["x"]: point["median_s"] for point in found["categories"]}
    resident = [point["resident_mb"] for point in found["videos"]]
    return found | {
        "hundred_categories_over_six": cost[100] / cost[6],
        "resident_mb": {"after_100": resident[0], "most": max(resident), "last": resident[-1]},
    }


def main() -> None:
    """Measure, write the report and its picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, SafeLens.load("tiny") as lens:
        write_dataset(Path(folder), clips=FILES, seed=5151)
        paths = sorted((Path(folder) / "videos").iterdir())
        report = {
            "command": "python -m benchmarks.scaling",
            "bundle": lens.provenance.bundle,
            "machine": machine(torch.get_num_threads()),
            "repeats": args.repeats,
        } | measure(lens, paths, args.videos, args.repeats)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    args.out.with_suffix(".svg").write_text(curves(report))


if __name__ == "__main__":
    main()
