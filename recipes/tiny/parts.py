"""What all stages of the recipe share: where things lie, sizes, and drawn clips as training clips."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from recipes.tiny.data import SMALL, DrawnClips
from safelens import prompts
from safelens.policy import Policy
from safelens.train.embedder import DESCRIBE, LabelledClip
from safelens.train.tokenizer import train_tokenizer
from safelens.verdict import Caption
from safelens.vlm import EncodedVideo, VisionLanguageModel

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


def tokenizer(drawn: DrawnClips, out: Path) -> Path:
    """Learn the tokenizer on the recipe's own texts, once."""
    if not (out / "tokenizer_config.json").exists():
        train_tokenizer(_corpus(drawn), out, vocab_size=2048)
    return out


def _corpus(drawn: DrawnClips) -> list[str]:
    p = policy()
    texts = [prompts.policy_prompt(p)] * 20 + [prompts.question(p), DESCRIBE.format(1.5)] * 20
    for clip in drawn.clips[:4000]:
        captions = [
            Caption(time_s=t, text=c) for t, c in zip(clip["times"], clip["captions"], strict=True)
        ]
        texts.append(prompts.deliberation_request(p, captions, dict.fromkeys(p.labels, 0.1)))
        texts.append(
            prompts.deliberation_answer(p, clip["description"], clip["explanation"], clip["labels"])
        )
    return texts


def labelled(clip: dict, video: EncodedVideo) -> LabelledClip:
    """A drawn clip as a training clip."""
    captions = tuple(
        Caption(time_s=t, text=c) for t, c in zip(clip["times"], clip["captions"], strict=True)
    )
    return LabelledClip(
        video, tuple(clip["labels"]), captions, clip["description"], clip["explanation"]
    )


def batch(vlm: VisionLanguageModel, drawn: DrawnClips, rows: np.ndarray) -> list[LabelledClip]:
    """Drawn clips as a training batch."""
    videos = vlm.encode_videos(
        [drawn.frames(int(i)) for i in rows],
        [np.asarray(drawn.clips[int(i)]["times"]) for i in rows],
    )
    return [labelled(drawn.clips[int(i)], v) for i, v in zip(rows, videos, strict=True)]


def rows_of_step(step: int, size: int, clips: int, stage: int) -> np.ndarray:
    """Which clips a step sees: each epoch is a fresh permutation."""
    per_epoch = clips // size
    order = np.random.default_rng((SEED, stage, step // per_epoch)).permutation(clips)
    at = step % per_epoch * size
    return order[at : at + size]
