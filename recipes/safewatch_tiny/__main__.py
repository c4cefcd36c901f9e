"""SafeWatch's three training stages on SafeWorld, from a small model that sees; on CPU.

    python -m recipes.safewatch_tiny [--work out/watch] [--seed 0] [--bundle FOLDER] [--until STAGE]

Questions of single phrases; multi-task guardrail training, adaptive-pruning training, preference post-tuning; then the
bundle. It begins with the embedded bundle's model. It can be interrupted and run again: finished stages are not
repeated, training goes on from its last checkpoint, and stages that are kept beside the recipe (`kept`) are not
trained.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.safewatch_tiny import bundle, drawing, preference, start, training
from recipes.stages import Stage, in_order, run

KEEP = 0.1
"""Share of a video's tokens that the bundle keeps, and the least that is trained on."""
TRAIN = Stage("train", drawing.draw, {"clips": 6_000, "seed": 881})
HELD = Stage("held", drawing.draw, {"clips": 3_200, "seed": 882})
VAL = Stage("val", drawing.draw, {"clips": 1_000, "seed": 883})
BASE = Stage("base", start.begin, {"sha256": start.digest()})
_LEARNING: dict[str, Any] = {
    "batch": 32,
    "phrases": 16,
    "warmup": 10,
    "others": 0.1,
}
_FINE = {"lr": 5e-4, "muon_lr": 0.007}
"""At three times Muon's rate and twice AdamW's, what the lesson before had taught was forgotten as soon as policies grew."""
_LAST_LESSON = {"groups": 4, "most": 10, "own": 0.25}
_ASKED = _LEARNING | {
    "tasks": ["questions"],
    "steps": 200,
    "lr": 1e-3,
    "muon_lr": 0.02,
    "least": None,
}
"""Whoever cannot see what a phrase says cannot learn what a policy of phrases says: from the start of the first stage
on whole policies, right and wrong booleans stayed evenly mixed."""
_FIRST = (
    _LEARNING
    | _FINE
    | {
        "tasks": list(training.GUARDRAIL),
        "steps": 720,
        "lessons": [
            {"steps": 120, "groups": 8, "most": 1, "own": 0.0},
            {"steps": 60, "groups": 8, "most": 2, "own": 0.0},
            {"steps": 60, "groups": 8, "most": 3, "own": 0.0},
            _LAST_LESSON,
        ],
        "least": None,
    }
)
_SECOND = (
    _LEARNING
    | _FINE
    | {
        "tasks": list(training.PRUNING),
        "steps": 160,
        "lessons": [_LAST_LESSON],
        "least": KEEP,
    }
)
_THIRD = {
    "batch": 8,
    "steps": 30,
    "warmup": 5,
    "lr": 1e-3,
    "rank": 16,
    "beta": 0.1,
    "own": 0.3,
    "least": KEEP,
}


@dataclass(frozen=True)
class Trained:
    """One seed's stages.

    Attributes:
        questions: what comes before the first, whatever the encoding: one task, no policy.
        guardrail: the first: many tasks, whole videos.
        pruning: the second: random shares of the video.
        preference: the third: the adapter.
        guard: the domain guard.
        bundle: all in one.
        sequential: the first with the policy as one text.
        shuffled: the second with the policy as one text, and the whole video.
    """

    questions: Stage
    guardrail: Stage
    pruning: Stage
    preference: Stage
    guard: Stage
    bundle: Stage
    sequential: Stage
    shuffled: Stage


def trained(seed: int) -> Trained:
    """Declare the stages of a seed; nothing is run."""

    def learned(name: str, settings: dict[str, Any], encoding: str, before: Stage) -> Stage:
        more = {"seed": seed, "encoding": encoding, "from": before.name}
        return Stage(name, training.train, settings | more, (TRAIN, before))

    questions = learned("questions", _ASKED, "parallel", BASE)
    guardrail = learned("guardrail", _FIRST, "parallel", questions)
    pruning = learned("pruning", _SECOND, "parallel", guardrail)
    tuned = Stage("preference", preference.tune, _THIRD | {"seed": seed}, (TRAIN, pruning))
    guard = Stage(
        "guard",
        bundle.fit_guard,
        {"keep": KEEP, "held": 1600, "val": 600, "false_refusal_rate": 0.01},
        (HELD, VAL, pruning),
    )
    sequential = learned("sequential", _FIRST, "sequential", questions)
    return Trained(
        questions,
        guardrail,
        pruning,
        tuned,
        guard,
        Stage("watch", bundle.pack_bundle, {"keep": KEEP}, (pruning, tuned, guard)),
        sequential,
        learned("shuffled", _SECOND | {"least": None}, "sequential", sequential),
    )


def main() -> None:
    """Run the stages, then put the bundle where it is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/watch"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, help="copy the bundle there")
    args, rest = parser.parse_known_args()
    found = trained(args.seed)
    goals = (found.bundle, found.shuffled)
    stages = {stage.name: stage for stage in in_order(*goals)}
    parser.add_argument("--until", choices=stages, help="stop after this stage")
    args = parser.parse_args(rest, args)
    if args.until:
        run(stages[args.until], root=args.work)
        return
    [folder] = run(found.bundle, root=args.work)
    if args.bundle:
        shutil.copytree(folder / "bundle", args.bundle, dirs_exist_ok=True)
        print(args.bundle)


if __name__ == "__main__":
    main()
