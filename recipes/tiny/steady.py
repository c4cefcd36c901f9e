"""Makes S2 of the bundle steady: words in captions that say nothing about the video are to change nothing.

    python -m recipes.tiny.steady [--bundle tiny] [--work out/steady] [--out FOLDER]

It needs the bundle alone, and no label: S2 answers fresh clips as it does, and its adapter learns to give the same
answers where captions have words that say nothing (`safelens.train.caption_noise`). `recipes.tiny` runs this last.
It can be interrupted and run again. --out is where the bundle is packed with the new adapter; it may be the bundle
itself. Afterwards `python -m recipes.tiny.check` and `python -m benchmarks.attacks` measure it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from recipes.stages import Stage, run
from recipes.tiny.data import DrawnClips, DrawnReader, draw
from recipes.tiny.pack import pack_with_adapter
from recipes.tiny.parts import FRAME_PIXELS, SEED, policy, use_all_cores
from recipes.tiny.reasoner import EqualLengths
from safelens.bundle import Bundle
from safelens.bundle_parts import ADAPTER, MODEL
from safelens.cascade import SafeLens
from safelens.data.records import Record, read_records
from safelens.line_log import LineLog
from safelens.train.caption_noise import CaptionNoise
from safelens.train.clips import Decoded, augmented, has_trace
from safelens.train.loop import LoopConfig
from safelens.train.reasoner import AugmentedClip, train_reasoner
from safelens.vlm import VisionLanguageModel

FRESH = Stage("fresh", draw, {"clips": 800, "seed": 774})
"""Clips that no part was trained on."""


def steady(unsteady: Stage) -> Stage:
    """The last stage of what makes a bundle's S2 steady.

    Args:
        unsteady: The stage of that name; leaves the bundle in ``bundle``.
    """
    answers = Stage("answers", answer, {"batch": 32}, (FRESH, unsteady))
    settings = {
        "steps": 400,
        "batch": 16,
        "lr": 1e-3,
        "boolean_weight": 1.0,
        "share": 0.75,
        "longest": 48,
    }
    return Stage("steady", train, settings, (FRESH, unsteady, answers))


def take(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a bundle as it is now; its digest in the settings makes the stage that bundle's own."""
    shutil.rmtree(out / "bundle", ignore_errors=True)
    shutil.copytree(Bundle.load(settings["bundle"]).folder, out / "bundle")


def answer(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: captions, S1's scores and S2's own answer to each clip, as records."""
    use_all_cores()
    clips = DrawnClips.open(needs["fresh"])
    reader = DrawnReader({"fresh": clips}, "large")
    log = LineLog(out / "records.jsonl")
    done = log.ids()
    records, size = clips.records("fresh"), settings["batch"]
    # the same batches after an interruption: the last bits of scores depend on them
    batches = [records[start : start + size] for start in range(0, len(records), size)]
    with SafeLens.load(needs["unsteady"] / "bundle") as lens:
        assert lens.captioner is not None
        for some in track(batches, description="answers"):
            if done.issuperset(record.id for record in some):
                continue
            batch = [reader.read(record.video) for record in some]
            told = lens.captioner.describe(batch)
            for record, s1, captions in zip(some, lens.screener.screen(batch), told, strict=True):
                if record.id in done:
                    continue
                said = lens.deliberator.deliberate(s1.context, captions, s1.scores)
                changes = {
                    "labels": tuple(name for name, flag in said.flags.items() if flag),
                    "captions": captions,
                    "scores": s1.scores,
                    "response": said.text,
                }
                # built anew, as a copy would not be checked
                answered = Record(**(record.model_dump() | changes))
                log.add(answered.model_dump_json(exclude_defaults=True))
    log.close()


def train(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: go on training the adapter, words that say nothing in the captions, its own answers as the goal."""
    use_all_cores()
    bundle = needs["unsteady"] / "bundle"
    vlm = VisionLanguageModel.load(bundle / MODEL, frame_pixels=FRAME_PIXELS)
    reader = DrawnReader({"fresh": DrawnClips.open(needs["fresh"])}, "small")
    records = [
        r for r in read_records(needs["answers"] / "records.jsonl") if has_trace(r, policy())
    ]
    alike = EqualLengths(records, settings["batch"])
    noise = CaptionNoise(
        vlm.tokenizer, policy(), share=settings["share"], longest=settings["longest"]
    )

    def batch_at(number: int) -> list[AugmentedClip]:
        some = alike.drawn(np.random.default_rng((SEED, 4, number)))
        read = [Decoded(record, reader.read(record.video)) for record in some]
        return noise.noisy(augmented(vlm, policy(), read), f"{SEED}/{number}")

    config = LoopConfig(
        steps=settings["steps"],
        warmup=20,
        lr=settings["lr"],
        muon_lr=None,
        weight_decay=0.0,
        checkpoint_every=50,
    )
    train_reasoner(
        vlm,
        policy(),
        batch_at,
        out,
        config,
        start=bundle / ADAPTER,
        boolean_weight=settings["boolean_weight"],
    )


def main() -> None:
    """Run the stages, then pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--work", type=Path, default=Path("out/steady"))
    parser.add_argument("--out", type=Path, help="by default WORK/bundle")
    args = parser.parse_args()
    found = Bundle.load(args.bundle)
    goal = steady(Stage("unsteady", take, {"bundle": str(found.folder), "sha256": found.sha256}))
    [folder] = run(goal, root=args.work)
    pack_with_adapter(found, folder / "adapter", args.out or args.work / "bundle")


if __name__ == "__main__":
    main()
