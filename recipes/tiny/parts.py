"""What several stages of the recipe share: sizes, the policy, drawn sets, models.

Knows where stages leave things. Knows nothing of how anything is trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from recipes.tiny.data import SMALL, DrawnClips
from safelens.data.records import Record, read_records
from safelens.line_log import LineLog
from safelens.policy import Policy
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel

SEED = 20261121
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
FRAME_PIXELS = SMALL * SMALL


@lru_cache(maxsize=1)
def policy() -> Policy:
    """The policy that the bundle is trained on."""
    return Policy.load("default")


def use_all_cores() -> None:
    """All that this process may use: torch takes half where it thinks that two share a core."""
    given = os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(int(given) if given else len(os.sched_getaffinity(0)))


def sets_of(needs: dict[str, Path]) -> dict[str, DrawnClips]:
    """The drawn sets among the stages that a stage needs."""
    return {
        name: DrawnClips.open(needs[name]) for name in ("train", "held", "val") if name in needs
    }


def load_vlm(folder: Path) -> VisionLanguageModel:
    """A stage's small Qwen3-VL."""
    return VisionLanguageModel.load(folder / "model", frame_pixels=FRAME_PIXELS)


def save_vlm(vlm: VisionLanguageModel, folder: Path) -> None:
    """Where `load_vlm` finds it."""
    vlm.model.save_pretrained(folder / "model")
    vlm.processor.save_pretrained(folder / "model")


def labelled_records(needs: dict[str, Path]) -> list[Record]:
    """What the filter kept, or all that is labelled where no filter is needed."""
    folder = needs.get("filter") or needs["labels"]
    return read_records(folder / "records.jsonl")


def with_captions(records: Sequence[Record], needs: dict[str, Path]) -> list[Record]:
    """Records with the captioner's captions in place of the drawn ones."""
    told = {
        line["id"]: line["captions"]
        for line in LineLog(needs["captions"] / "captions.jsonl").read()
    }
    return [
        record.model_copy(
            update={
                "captions": tuple(
                    Caption(time_s=old.time_s, text=new)
                    for old, new in zip(record.captions, told[record.id], strict=True)
                )
            }
        )
        for record in records
    ]
