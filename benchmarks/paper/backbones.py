"""The stages of the paper's grid of backbones: three families of models, each as embedder and as reasoner.

Knows which model screens and which deliberates, and how long the two smaller ones learn. Knows nothing of
figures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.stages import TEST, ask_bundle, pack_bundle, seed_of
from recipes.stages import Stage
from recipes.tiny import embedder, fast, reasoner
from recipes.tiny.__main__ import (
    BASE,
    CAPTIONER,
    CAPTIONS,
    EMBEDDER,
    FAST,
    FILTER,
    HELD,
    REASONER,
    SEEING,
    TOKENIZER,
    TRAIN,
    VAL,
)
from recipes.tiny.curation import write_traces
from recipes.tiny.parts import SEED
from safelens.train.tiny_internvl import build_internvl
from safelens.train.tiny_lfm2_vl import build_lfm2_vl

QWEN, INTERNVL, LFM2 = "Qwen3-VL", "InternVL", "LFM2-VL"
FAMILIES = (QWEN, INTERNVL, LFM2)
"""From the largest model to the smallest, as the paper's three."""
CLIPS = 350
"""Of the test videos, from the first: what each pair is asked about."""
STEPS: dict[str, dict[str, int]] = {
    "seeing": {"steps": 640},
    "base": {"steps": 320},
    "embedder": {"see": 160, "steps": 640},
    "reasoner": {"steps": 240},
}
"""Of InternVL and LFM2-VL, in place of the recipe's; all else is as there."""

_BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    INTERNVL: build_internvl,
    LFM2: build_lfm2_vl,
}


def build_untrained(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a family's model with random weights, reading the recipe's tokens and its own special ones."""
    model, processor = _BUILDERS[settings["family"]](needs["tokenizer"], seed=settings["seed"])
    model.save_pretrained(out / "model")
    processor.save_pretrained(out / "model")


def set_apart(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a reasoner whole, base model and adapter, for bundles whose embedder is another model."""
    for stage, part in (("embedder", "model"), ("reasoner", "adapter")):
        shutil.copytree(needs[stage] / part, out / part, dirs_exist_ok=True)


@dataclass(frozen=True)
class Backbone:
    """What one family's model becomes.

    Attributes:
        embedder: Trained on the labels that the filter kept.
        fast: Its probe and domain guard.
        second: The embedder with the adapter that makes it a reasoner.
        bundle: Both in one, S2 going on from S1's cache.
    """

    embedder: Stage
    fast: Stage
    second: Stage
    bundle: Stage


def backbone(family: str) -> Backbone:
    """Declare a family's stages; nothing is run. Qwen3-VL's are the recipe's own."""
    if family == QWEN:
        learned, screen, adapter = EMBEDDER, FAST, REASONER
    else:
        build = {"family": family, "seed": SEED}
        untrained = Stage("untrained", build_untrained, build, (TOKENIZER,))
        seeing = _shortened(SEEING, embedder.learn_to_see_from, (TRAIN, untrained))
        base = _shortened(BASE, embedder.learn_to_tell, (TRAIN, seeing))
        learned = _shortened(EMBEDDER, embedder.learn_labels, (TRAIN, FILTER, base))
        screen = Stage("fast", fast.fit, FAST.settings, (HELD, VAL, FILTER, learned))
        traces = Stage("traces", write_traces, {}, (screen, CAPTIONS))
        adapter = _shortened(REASONER, reasoner.train, (HELD, learned, traces))
    parts = (learned, CAPTIONER, screen, adapter)
    return Backbone(
        learned,
        screen,
        Stage("second", set_apart, {}, (learned, adapter)),
        Stage("bundle", pack_bundle, {}, parts),
    )


def _shortened(stage: Stage, work: Callable[..., None], needs: tuple[Stage, ...]) -> Stage:
    return Stage(stage.name, work, stage.settings | STEPS[stage.name], needs)


def pair(screens: str, deliberates: str) -> Stage:
    """What a pair answers, both stages: one family's model screens, the same or another's deliberates.

    Qwen3-VL with itself is seed 0 of the report; its answers are on all test videos.
    """
    if screens == deliberates == QWEN:
        return seed_of(0).test
    one = backbone(screens)
    if screens == deliberates:
        bundle = one.bundle
    else:
        parts = (one.embedder, CAPTIONER, one.fast, backbone(deliberates).second)
        bundle = Stage("bundle", pack_bundle, {}, parts)
    settings = {"screen_only": False, "clips": CLIPS}
    return Stage("answers", ask_bundle, settings, (TEST, bundle))


PAIRS = tuple((screens, deliberates) for deliberates in FAMILIES for screens in FAMILIES)
"""Embedder and reasoner, in the order of the paper's tables 6 and 7."""
