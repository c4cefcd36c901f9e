"""Stage: train the small Florence-2 on single frames, then on the same frames shifted.

Knows which frames are shown how often. Knows nothing of videos or policies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recipes.tiny.data import DrawnClips
from recipes.tiny.parts import SEED, use_all_cores
from safelens.train.captioner import train_captioner
from safelens.train.loop import LoopConfig
from safelens.train.tiny_models import build_captioner

SHIFT = 4
"""Pixels by which a frame is shifted at most: small text is otherwise learned by heart, frame by frame."""
MAX_TOKENS = 48


def shifted(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame moved and brightened or darkened a little, its edges repeated."""
    side = frames.shape[1]
    padded = np.pad(frames, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * SHIFT + 1, (len(frames), 2))
    moved = np.stack(
        [p[y : y + side, x : x + side] for p, (y, x) in zip(padded, corners, strict=True)]
    )
    light = rng.uniform(0.9, 1.1, (len(frames), 1, 1, 1))
    return (moved * light).clip(0, 255).round().astype(np.uint8)


def train(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: ``settings["steps"]`` on frames as they are, then ``settings["shifted_steps"]``."""
    use_all_cores()
    drawn = DrawnClips.open(needs["train"])
    size = settings["batch"]
    captions = [c for clip in drawn.clips for c in clip["captions"]]
    with_text = np.flatnonzero(["the text" in c for c in captions])
    model, processor = build_captioner(needs["tokenizer"], seed=SEED)

    def batch_at(step: int, stage: int = 2) -> tuple[np.ndarray, list[str]]:
        """Frames drawn at random, two in five among those that show text to be read."""
        rng = np.random.default_rng((SEED, stage, step))
        reading = rng.choice(with_text, size * 2 // 5, replace=False)
        others = rng.choice(len(captions), size - len(reading), replace=False)
        rows = np.sort(np.concatenate([reading, others]))
        return np.asarray(drawn.large[rows]), [captions[i] for i in rows]

    def shifted_batch_at(step: int) -> tuple[np.ndarray, list[str]]:
        """The same of another draw, its frames shifted."""
        frames, told = batch_at(step, 4)
        return shifted(frames, np.random.default_rng((SEED, 5, step))), told

    lr, muon_lr = settings["lr"], settings["muon_lr"]
    first = LoopConfig(steps=settings["steps"], lr=lr, muon_lr=muon_lr, checkpoint_every=50)
    train_captioner(model, processor, batch_at, out / "first", first, max_tokens=MAX_TOKENS)
    then = LoopConfig(
        steps=settings["shifted_steps"],
        warmup=20,
        lr=lr / 2,
        muon_lr=muon_lr / 2,
        checkpoint_every=50,
    )
    train_captioner(model, processor, shifted_batch_at, out, then, max_tokens=MAX_TOKENS)
