"""Stage: train the small Florence-2 on single frames, then on the same frames shifted.

python -m recipes.tiny.captioner WORK --steps N --shifted-steps M
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from recipes.tiny.data import DrawnClips
from recipes.tiny.parts import SEED, tokenizer
from safelens.train.captioner import train_captioner
from safelens.train.loop import LoopConfig
from safelens.train.tiny_models import build_captioner

SHIFT = 4
"""Pixels by which a frame is shifted at most: small text is otherwise learned by heart, frame by frame."""


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--shifted-steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    drawn = DrawnClips.open(args.work / "train")
    captions = [c for clip in drawn.clips for c in clip["captions"]]
    with_text = np.flatnonzero(["the text" in c for c in captions])
    model, processor = build_captioner(tokenizer(drawn, args.work / "tokenizer"), seed=SEED)

    def batch_at(step: int, stage: int = 2) -> tuple[np.ndarray, list[str]]:
        """Frames drawn at random, two in five among those that show text to be read."""
        rng = np.random.default_rng((SEED, stage, step))
        reading = rng.choice(with_text, args.batch * 2 // 5, replace=False)
        others = rng.choice(len(captions), args.batch - len(reading), replace=False)
        rows = np.sort(np.concatenate([reading, others]))
        return np.asarray(drawn.large[rows]), [captions[i] for i in rows]

    def shifted_batch_at(step: int) -> tuple[np.ndarray, list[str]]:
        """The same of another draw, its frames shifted."""
        frames, told = batch_at(step, 4)
        return shifted(frames, np.random.default_rng((SEED, 5, step))), told

    first = LoopConfig(steps=args.steps, lr=args.lr, muon_lr=args.muon_lr, checkpoint_every=50)
    train_captioner(
        model, processor, batch_at, args.work / "captioner" / "first", first, max_tokens=48
    )
    then = LoopConfig(
        steps=args.shifted_steps,
        warmup=20,
        lr=args.lr / 2,
        muon_lr=args.muon_lr / 2,
        checkpoint_every=50,
    )
    train_captioner(
        model, processor, shifted_batch_at, args.work / "captioner", then, max_tokens=48
    )
