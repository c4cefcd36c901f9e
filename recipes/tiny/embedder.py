"""Stages: a small Qwen3-VL that sees and reads, and what it becomes when it is shown labels.

Knows what is learned from which clips. Knows nothing of influence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipes.tiny.data import DrawnReader
from recipes.tiny.parts import (
    FRAME_PIXELS,
    SEED,
    TEXT,
    labelled_records,
    load_vlm,
    policy,
    save_vlm,
    sets_of,
    use_all_cores,
    with_captions,
)
from recipes.tiny.reading import Text, deliberated, filled_in, quoted, readable, repeated
from safelens import prompts
from safelens.data.records import Record
from safelens.train.clips import ClipBatches, labelled
from safelens.train.embedder import DESCRIBE, Task, train_embedder
from safelens.train.loop import LoopConfig
from safelens.train.tiny_vlm import build_vlm
from safelens.train.tokenizer import train_tokenizer
from safelens.vlm import VisionLanguageModel


def learn_tokenizer(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: the tokenizer, on prompts and on texts of the drawn clips."""
    p = policy()
    texts = [prompts.policy_prompt(p)] * 20 + [prompts.question(p), DESCRIBE.format(1.5)] * 20
    for record in sets_of(needs)["train"].records("train")[: settings["clips"]]:
        scores = dict.fromkeys(p.labels, 0.1)
        texts.append(prompts.deliberation_request(p, record.captions, scores))
        texts.append(
            prompts.deliberation_answer(
                p, record.description or "", record.explanation or "", record.labels
            )
        )
    train_tokenizer(texts, out, vocab_size=settings["vocab_size"])


def learn_to_see(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: from random weights to a model that describes frames and repeats what it reads.

    It stands for the pretrained model that a user begins with: no label is shown to it. Of eight batches
    three ask for captions of frames, five are texts without a video.
    """
    model, processor = build_vlm(needs["tokenizer"], seed=SEED, **TEXT)
    vlm = VisionLanguageModel(model, processor, frame_pixels=FRAME_PIXELS)
    records = sets_of(needs)["train"].records("train")
    told = readable(records)

    def texts_at(number: int) -> list[Text]:
        rng = random.Random(f"{SEED}/see/{number}")
        if number % 2:
            return [repeated(rng) for _ in range(2 * settings["batch"])]
        return [quoted(rng, told, most=3) for _ in range(settings["batch"])]

    def task_of(number: int) -> Task:
        return "see" if number % 8 in (0, 3, 6) else "read"

    _train(vlm, records, out, settings, needs, task_of, texts_at, auxiliary=0.0)


def learn_to_see_from(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: as `learn_to_see`, from a model of any family that the stage "untrained" left.

    The same clips and texts in the same order, written out anew: what is written in `learn_to_see` is in the
    digest of finished stages.
    """
    vlm = load_vlm(needs["untrained"])
    records = sets_of(needs)["train"].records("train")
    told = readable(records)

    def texts_at(number: int) -> list[Text]:
        rng = random.Random(f"{SEED}/see/{number}")
        if number % 2:
            return [repeated(rng) for _ in range(2 * settings["batch"])]
        return [quoted(rng, told, most=3) for _ in range(settings["batch"])]

    def task_of(number: int) -> Task:
        return "see" if number % 8 in (0, 3, 6) else "read"

    _train(vlm, records, out, settings, needs, task_of, texts_at, auxiliary=0.0)


def learn_to_tell(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: from frames to whole clips, and the form of an answer; still without any label.

    Of four batches two ask for a clip's description and one for captions of frames; one is texts.
    """
    vlm = load_vlm(needs["seeing"])
    records = sets_of(needs)["train"].records("train")
    told = readable(records)

    def texts_at(number: int) -> list[Text]:
        rng = random.Random(f"{SEED}/tell/{number}")
        if number % 8 == 3:
            return [filled_in(rng, policy()) for _ in range(settings["batch"])]
        return [quoted(rng, told, most=6) for _ in range(settings["batch"])]

    def task_of(number: int) -> Task:
        return ("describe", "see", "describe", "read")[number % 4]

    _train(vlm, records, out, settings, needs, task_of, texts_at, auxiliary=0.0)


def learn_labels(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: from the base to a model that answers under the policy, on labels as they are given.

    ``settings["see"]`` batches come first that show labels to the auxiliary head alone: cheap, without the
    policy. With ``settings["deliberate"]`` every third batch after them trains the reasoned answer and
    every twelfth reading. With ``settings["read_captions"]`` the captioner's captions stand in the prompt.
    """
    vlm = load_vlm(needs["base"])
    records = [r for r in labelled_records(needs) if r.video.startswith("train/")]
    told = readable(records)
    if settings.get("read_captions"):
        records = with_captions(records, needs)

    def texts_at(number: int) -> list[Text]:
        rng = random.Random(f"{SEED}/labels/{number}")
        return [deliberated(rng, policy(), told, most=6) for _ in range(settings["batch"])]

    def task_of(number: int) -> Task:
        if number < settings["see"]:
            return "see"
        if settings["deliberate"] and number % 3 == 0:
            return "deliberate"
        return "read" if settings["deliberate"] and number % 12 == 7 else "screen"

    _train(vlm, records, out, settings, needs, task_of, texts_at, auxiliary=1.0)


def _train(
    vlm: VisionLanguageModel,
    records: Sequence[Record],
    out: Path,
    settings: dict[str, Any],
    needs: dict[str, Path],
    task_of: Callable[[int], Task],
    texts_at: Callable[[int], list[Text]],
    *,
    auxiliary: float,
) -> None:
    use_all_cores()
    reader = DrawnReader(sets_of(needs), "small")
    batches = ClipBatches(records, reader, size=settings["batch"], seed=settings["seed"])
    config = LoopConfig(
        steps=settings["steps"],
        warmup=settings.get("warmup", 50),
        lr=settings["lr"],
        muon_lr=settings["muon_lr"],
        checkpoint_every=50,
    )
    try:
        train_embedder(
            vlm,
            policy(),
            lambda number: labelled(vlm, batches(number)),
            out,
            config,
            task_of=task_of,
            texts_at=texts_at,
            auxiliary=auxiliary,
            boolean_weight=settings.get("boolean_weight", 0.0),
            read_captions=settings.get("read_captions", False),
        )
    finally:
        batches.close()
    save_vlm(vlm, out)
