"""Stage: train the small Qwen3-VL.

python -m recipes.tiny.embedder WORK --steps N --see M
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.tiny.data import DrawnClips
from recipes.tiny.parts import FRAME_PIXELS, SEED, TEXT, batch, policy, rows_of_step, tokenizer
from safelens.train.embedder import LabelledClip, train_embedder
from safelens.train.loop import LoopConfig
from safelens.train.tiny_vlm import build_vlm
from safelens.vlm import VisionLanguageModel

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--see", type=int, default=350)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--start", type=Path, help="weights to go on from, instead of random ones")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    drawn = DrawnClips.open(args.work / "train")
    model, processor = build_vlm(tokenizer(drawn, args.work / "tokenizer"), seed=SEED, **TEXT)
    if args.start:
        model = type(model).from_pretrained(args.start)
    vlm = VisionLanguageModel(model, processor, frame_pixels=FRAME_PIXELS)

    def batch_at(step: int) -> list[LabelledClip]:
        """The next clips of a shuffled epoch."""
        return batch(vlm, drawn, rows_of_step(step, args.batch, len(drawn.clips), 1))

    config = LoopConfig(steps=args.steps, lr=args.lr, muon_lr=args.muon_lr, checkpoint_every=50)
    train_embedder(
        vlm, policy(), batch_at, args.work / "embedder", config, see=args.see, deliberate_every=3
    )
    model.save_pretrained(args.work / "embedder" / "model")
    processor.save_pretrained(args.work / "embedder" / "model")
