"""Stage: train the small Florence-2 on single frames.

python -m recipes.tiny.captioner WORK --steps N
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

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--start", type=Path, help="weights to go on from, instead of random ones")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    drawn = DrawnClips.open(args.work / "train")
    captions = [c for clip in drawn.clips for c in clip["captions"]]
    model, processor = build_captioner(tokenizer(drawn, args.work / "tokenizer"), seed=SEED)

    if args.start:
        model = type(model).from_pretrained(args.start)

    def batch_at(step: int) -> tuple[np.ndarray, list[str]]:
        """Frames drawn at random from all clips."""
        rows = np.random.default_rng((SEED, 2, step)).choice(
            len(captions), args.batch, replace=False
        )
        rows.sort()
        return np.asarray(drawn.large[rows]), [captions[i] for i in rows]

    config = LoopConfig(steps=args.steps, lr=args.lr, muon_lr=args.muon_lr, checkpoint_every=50)
    train_captioner(model, processor, batch_at, args.work / "captioner", config, max_tokens=48)
