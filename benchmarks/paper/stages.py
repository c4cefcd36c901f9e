"""The stages of the report: videos, a bundle a seed by Algorithm 1, and what every system answers.

Knows what is trained on what, and which system answers on which videos. Knows nothing of figures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.curation import MAIN
from benchmarks.curation import trial as curation_trial
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
    TRAIN,
    VAL,
)
from recipes.tiny.check import answers_of, videos
from recipes.tiny.curation import write_traces
from recipes.tiny.data import LARGE
from recipes.tiny.pack import pack
from recipes.tiny.parts import FRAME_PIXELS, policy, use_all_cores
from safelens.bundle import ClipSettings
from safelens.data.records import Record
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.evaluate.system import System
from safelens.evaluate.vlm_system import VlmSystem
from safelens.safeworld.writer import write_dataset

MAX_NEW_TOKENS = 160


def write_videos(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: SafeWorld videos that nothing is trained on."""
    write_dataset(
        out / "data", clips=settings["clips"], seed=settings["seed"], jobs=os.cpu_count() or 1
    )


def pack_bundle(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a seed's bundle; as in the paper, what the guard does not know goes to S2."""
    pack(needs, out / "bundle", outside_domain="escalate")


def ask_bundle(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: S1's answers on all videos, or S1's and S2's."""
    bundle = str(needs["bundle"] / "bundle")
    _ask(
        SafeLensSystem("bundle", bundle, screen_only=settings["screen_only"]), out, settings, needs
    )


def ask_model(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a model's own answers, one greedy decoding a video."""
    system = VlmSystem(
        "model",
        str(needs[settings["model"]] / "model"),
        "safelens",
        policy(),
        clip=ClipSettings(max_side=LARGE),
        frame_pixels=FRAME_PIXELS,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    _ask(system, out, settings, needs)


def _ask(system: System, out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    use_all_cores()
    answers_of("system", system, records_of(needs["videos"])[: settings["clips"]], out)


def records_of(folder: Path) -> list[Record]:
    """The records of a folder that `write_videos` filled, their videos absolute."""
    return videos(folder / "data" / "records.jsonl")


TEST = Stage("videos", write_videos, {"clips": 700, "seed": 4242})
CHOICE = Stage("videos", write_videos, {"clips": 2_000, "seed": 4343})
"""What temperature and tau are chosen on. S2 answers on the first `CHOSEN_ON` alone."""
CHOSEN_ON = 400


@dataclass(frozen=True)
class Seed:
    """The stages of one seed, which is that of training; the labels and their noise are the same for all.

    Attributes:
        test: Both stages' answers on the test videos.
        choice: The same on the videos that tau is chosen on.
        screened: S1's answers on more of those, for temperature and risk.
        tuned: The embedder's own answers, without probe: the plain fine-tuned model.
        filtered: S1's accuracy in `benchmarks.curation`, embedder and probe trained on what influence kept.
        unfiltered: On all of it.
    """

    test: Stage
    choice: Stage
    screened: Stage
    tuned: Stage
    filtered: Stage
    unfiltered: Stage


def _asked(model: Stage) -> Stage:
    return Stage(
        "asked", ask_model, {"model": model.name, "clips": TEST.settings["clips"]}, (TEST, model)
    )


ZERO_SHOT = _asked(BASE)
"""The model before it was shown labels."""


def seed_of(number: int) -> Seed:
    """Declare the stages; nothing is run. Number 0 is the embedded bundle's own training."""
    settings = EMBEDDER.settings | {"seed": EMBEDDER.settings["seed"] + number}
    learned = Stage("embedder", embedder.learn_labels, settings, (TRAIN, FILTER, BASE))
    screen = Stage("fast", fast.fit, FAST.settings, (HELD, VAL, FILTER, learned))
    traces = Stage("traces", write_traces, {}, (screen, CAPTIONS))
    adapter = Stage("reasoner", reasoner.train, REASONER.settings, (HELD, learned, traces))
    bundle = Stage("bundle", pack_bundle, {}, (learned, CAPTIONER, screen, adapter))
    both = {"screen_only": False}
    curated = curation_trial(*MAIN, number)

    return Seed(
        test=Stage("answers", ask_bundle, both | {"clips": TEST.settings["clips"]}, (TEST, bundle)),
        choice=Stage("answers", ask_bundle, both | {"clips": CHOSEN_ON}, (CHOICE, bundle)),
        screened=Stage(
            "answers",
            ask_bundle,
            {"screen_only": True, "clips": CHOICE.settings["clips"]},
            (CHOICE, bundle),
        ),
        tuned=_asked(learned),
        filtered=curated.filtered,
        unfiltered=curated.noisy,
    )
