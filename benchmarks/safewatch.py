"""SafeWatch's experiments on SafeWorld, and what its modules save at a true shape.

    python -m benchmarks.safewatch [--work out/watch] [--seeds 3] [--shape FILE] [--out reports]

Positional bias under shuffled policies, categories read alone beside one text; accuracy and cost at shares of a video's
tokens; categories that were never seen and SafeWorld's five policies after each training stage. A seed's models
are trained by `recipes.safewatch_tiny`. Every stage's result is kept in --work; an interrupted run goes on, and
seeds can be run over several sittings. Writes safewatch.json and safewatch.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.curation import spread
from benchmarks.paper.stages import TEST
from benchmarks.safewatch_asks import KEEPS, bundle_answers, order, pruning, zero_shot
from benchmarks.safewatch_page import written
from recipes.machine import machine
from recipes.safewatch_tiny.__main__ import BASE, HELD, KEEP, trained
from recipes.stages import Stage, run

CLIPS = 1_000
SHUFFLES = 100
_ORDER = {"clips": 24, "shuffles": SHUFFLES, "seed": 0}
_ASKED: dict[str, Any] = {"clips": 1_600, "under_policies": 300, "each": 24, "stage": "screen"}
_WRITTEN: dict[str, Any] = {"clips": 1_600, "under_policies": 40, "each": 8, "stage": "deliberate"}
VIDEOS = 150
"""Decoded videos that the bundle is asked about, whole."""


@dataclass(frozen=True)
class Seed:
    """What is measured of one seed.

    Attributes:
        order: "parallel", "laid" (blocks in the policy's order) and "sequential" to shuffled policies.
        pruning: shares of the video's tokens.
        screened: S1's answers without training on unseen policies, by the training stage.
        written: S2's.
        bundle: the bundle on decoded videos, by share.
    """

    order: dict[str, Stage]
    pruning: Stage
    screened: dict[str, Stage]
    written: dict[str, Stage]
    bundle: dict[str, Stage]


def seed_of(number: int) -> Seed:
    """Declare a seed's stages; nothing is run."""
    t = trained(number)

    def asked(model: Stage, encoding: str, settings: dict[str, Any], *more: Stage) -> Stage:
        about = {"model": model.name, "encoding": encoding} | settings
        return Stage("zeroshot", zero_shot, about, (HELD, model, *more))

    def ordered(model: Stage, encoding: str, laid: bool) -> Stage:
        about = {"model": model.name, "encoding": encoding, "laid": laid}
        return Stage("order", order, about | _ORDER, (HELD, model))

    stages = {
        "base": (BASE, "parallel"),
        "guardrail": (t.guardrail, "parallel"),
        "pruning": (t.pruning, "parallel"),
        "sequential": (t.shuffled, "sequential"),
    }
    pruned = {"keep": KEEP}
    return Seed(
        {
            "parallel": ordered(t.pruning, "parallel", False),
            "laid": ordered(t.pruning, "parallel", True),
            "sequential": ordered(t.shuffled, "sequential", False),
        },
        Stage(
            "pruned",
            pruning,
            {"model": "pruning", "encoding": "parallel", "clips": CLIPS, "policies": 8},
            (HELD, t.pruning),
        ),
        {name: asked(*model, _ASKED) for name, model in stages.items()}
        | {"pruning, a tenth kept": asked(t.pruning, "parallel", _ASKED | pruned)},
        {
            "guardrail": asked(t.guardrail, "parallel", _WRITTEN),
            "pruning": asked(t.pruning, "parallel", _WRITTEN),
            "preference": asked(t.pruning, "parallel", _WRITTEN, t.preference),
            "preference, a tenth kept": asked(
                t.pruning, "parallel", _WRITTEN | pruned, t.preference
            ),
            "sequential": asked(t.shuffled, "sequential", _WRITTEN),
        },
        {
            f"{keep:g}": Stage(
                "bundled", bundle_answers, {"keep": keep, "clips": VIDEOS}, (TEST, t.bundle)
            )
            for keep in (1.0, KEEP)
        },
    )


def stages_of(seed: Seed) -> list[Stage]:
    """All that the report needs of one seed."""
    return [
        *seed.order.values(),
        seed.pruning,
        *seed.screened.values(),
        *seed.written.values(),
        *seed.bundle.values(),
    ]


def figures(seeds: Sequence[int], root: Path) -> dict[str, Any]:
    """All that the report says of SafeWorld, over seeds."""
    found = [_of_one(seed_of(number), root) for number in seeds]
    return {
        "order": {
            name: _merged([one["order"][name] for one in found]) for name in found[0]["order"]
        },
        "pruning": _merged([one["pruning"] for one in found]),
        "screened": _merged([one["screened"] for one in found]),
        "written": _merged([one["written"] for one in found]),
        "bundle": _merged([one["bundle"] for one in found]),
        "order_spread": {
            name: spread([one["order"][name]["largest_difference"] for one in found])
            for name in ("parallel", "laid", "sequential")
        },
        "accuracy_drop_keep_0.1": spread([_drop(one["pruning"]) for one in found]),
    }


def _drop(found: dict[str, Any]) -> float:
    whole, least = (found[f"{keep:g}"]["accuracy"]["average"] for keep in (1.0, min(KEEPS)))
    return float(whole - least)


def _of_one(seed: Seed, root: Path) -> dict[str, Any]:
    def read(stage: Stage, file: str) -> Any:
        return json.loads((stage.folder(root) / file).read_text())

    return {
        "order": {name: read(stage, "order.json") for name, stage in seed.order.items()},
        "pruning": read(seed.pruning, "pruning.json"),
        "screened": {name: read(s, "zero_shot.json") for name, s in seed.screened.items()},
        "written": {name: read(s, "zero_shot.json") for name, s in seed.written.items()},
        "bundle": {name: read(s, "answers.json") for name, s in seed.bundle.items()},
    }


def _merged(found: Sequence[Any]) -> Any:
    """Numbers at one place of several results as mean, deviation and values; what is the same, once."""
    first = found[0]
    if isinstance(first, dict):
        return {name: _merged([one[name] for one in found]) for name in first}
    if isinstance(first, list):
        return [_merged(row) for row in zip(*found, strict=True)]
    if first is None or isinstance(first, int):
        return first if all(one == first for one in found) else list(found)
    return spread([float(one) for one in found])


def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/watch"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--shape", type=Path, help="what `benchmarks.safewatch_shape` found at the true shape"
    )
    parser.add_argument("--out", type=Path, default=Path("reports"))
    args = parser.parse_args()
    run(*(s for number in range(args.seeds) for s in stages_of(seed_of(number))), root=args.work)
    report = {
        "command": "python -m benchmarks.safewatch",
        "about": (
            f"Mean and standard deviation over {args.seeds} seed(s) of training, on the same clips of SafeWorld, "
            "which nothing was trained on."
        ),
        "machine": machine(),
    } | figures(range(args.seeds), args.work)
    if args.shape:
        shape = json.loads(args.shape.read_text())
        report |= {
            "shape": shape,
            "s2_latency_saving": shape["s2_latency_saving"],
            "add_category_over_block": shape["add_category_over_block"],
        }
    args.out.mkdir(exist_ok=True)
    (args.out / "safewatch.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "safewatch.md").write_text(written(report))
    print(written(report))


if __name__ == "__main__":
    main()
