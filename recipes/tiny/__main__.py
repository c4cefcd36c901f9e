"""Trains the embedded bundle from nothing, by Algorithm 1 from noisy labels; on CPU.

    python -m recipes.tiny [--work out/tiny] [--bundle src/safelens/bundles/tiny] [--until STAGE]

It can be interrupted and run again: finished stages are not repeated, training goes on from its last
checkpoint. Afterwards `python -m recipes.tiny.check` measures the bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.stages import Stage, in_order, run
from recipes.tiny import captioner, curation, data, embedder, fast, reasoner
from recipes.tiny.pack import pack, packed
from recipes.tiny.parts import SEED
from recipes.tiny.steady import steady

TRAIN = Stage("train", data.draw, {"clips": 16_000, "seed": SEED})
HELD = Stage("held", data.draw, {"clips": 3_200, "seed": 773})
VAL = Stage("val", data.draw, {"clips": 1_000, "seed": 772})
TOKENIZER = Stage(
    "tokenizer", embedder.learn_tokenizer, {"clips": 4_000, "vocab_size": 2048}, (TRAIN,)
)
CAPTIONER = Stage(
    "captioner",
    captioner.train,
    {"steps": 2200, "shifted_steps": 800, "batch": 64, "lr": 1.5e-3, "muon_lr": 0.02},
    (TRAIN, TOKENIZER),
)
SEEING = Stage(
    "seeing",
    embedder.learn_to_see,
    {"steps": 960, "batch": 32, "lr": 1.5e-3, "muon_lr": 0.02, "seed": SEED},
    (TRAIN, TOKENIZER),
)
BASE = Stage(
    "base",
    embedder.learn_to_tell,
    {"steps": 400, "batch": 32, "lr": 1e-3, "muon_lr": 0.015, "seed": SEED + 1},
    (TRAIN, SEEING),
)
LABELS = Stage(
    "labels",
    curation.draw_labels,
    {"clips": 8_000, "noise": 0.25, "kind": "confusion", "seed": SEED},
    (TRAIN, HELD),
)
CAPTIONS = Stage(
    "captions", curation.caption, {"batch": 128}, (TRAIN, HELD, VAL, LABELS, CAPTIONER)
)
LEARNING = {"batch": 32, "lr": 1e-3, "muon_lr": 0.015, "warmup": 20, "boolean_weight": 0.5}
"""How labels are learned, be they wrong or kept by the filter."""
READING = LEARNING | {
    "see": 0,
    "deliberate": False,
    "read_captions": True,
    "boolean_weight": 4.0,
}
"""Of the model that influence is asked of. Its booleans are few among the answer's tokens; at 0.5 it answers by
how frequent a category is, and of its gradients only the states tell clips apart."""
NOISY = Stage(
    "noisy",
    embedder.learn_labels,
    READING | {"steps": 240, "seed": 1},
    (TRAIN, LABELS, BASE, CAPTIONS),
)
INFLUENCE = Stage(
    "influence",
    curation.find_influence,
    {"rank": 16, "seed": 0, "batch": 16, "read_captions": True},
    (TRAIN, HELD, VAL, LABELS, NOISY, CAPTIONS),
)
FILTER = Stage(
    "filter",
    curation.filter_labels,
    {"score": "whitened", "false_drop_rate": 0.05},
    (LABELS, INFLUENCE),
)
EMBEDDER = Stage(
    "embedder",
    embedder.learn_labels,
    LEARNING | {"see": 250, "steps": 1000, "seed": 2, "deliberate": True},
    (TRAIN, FILTER, BASE),
)
FAST = Stage(
    "fast",
    fast.fit,
    {"folds": 5, "steps": 1500, "lr": 1e-3, "patience": 20, "false_refusal_rate": 0.01},
    (HELD, VAL, FILTER, EMBEDDER),
)
TRACES = Stage("traces", curation.write_traces, {}, (FAST, CAPTIONS))
REASONER = Stage(
    "reasoner",
    reasoner.train,
    {"steps": 400, "batch": 16, "lr": 3e-3, "rank": 32, "alpha": 64, "boolean_weight": 1.0},
    (HELD, EMBEDDER, TRACES),
)
"""The adapter that continues S1's cache."""
UNSTEADY = Stage("unsteady", packed, {}, (EMBEDDER, CAPTIONER, FAST, REASONER))
STEADY = steady(UNSTEADY)
"""The last stage: the same adapter, unmoved by words in captions that say nothing about the video."""


def main() -> None:
    """Run the stages, then pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/tiny"))
    parser.add_argument("--bundle", type=Path, default=Path("src/safelens/bundles/tiny"))
    stages = {stage.name: stage for stage in in_order(STEADY)}
    parser.add_argument("--until", choices=stages, help="stop after this stage and pack nothing")
    args = parser.parse_args()
    if args.until:
        run(stages[args.until], root=args.work)
        return
    run(STEADY, root=args.work)
    parts = {stage.name: stage.folder(args.work) for stage in (EMBEDDER, CAPTIONER, FAST)}
    pack(parts | {"reasoner": STEADY.folder(args.work)}, args.bundle)


if __name__ == "__main__":
    main()
