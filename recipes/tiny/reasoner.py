"""Stage: train the reasoner on the captioner's captions and the probe's out-of-fold scores.

python -m recipes.tiny.reasoner WORK --steps M
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from recipes.tiny.data import DrawnClips
from recipes.tiny.parts import FRAME_PIXELS, SEED, batch, policy
from safelens.captioner import Captioner
from safelens.train.loop import LoopConfig
from safelens.train.reasoner import AugmentedClip, train_reasoner
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel


def captions_of(work: Path, drawn: DrawnClips, rows: list[int]) -> dict[int, list[str]]:
    """The captioner's captions of some clips, kept on disk as they come."""
    path = work / "captions.jsonl"
    done: dict[int, list[str]] = {}
    if path.exists():
        whole = [r for r in path.read_text().splitlines(keepends=True) if r.endswith("\n")]
        path.write_text("".join(whole))  # without a last line that an interruption cut
        done = {r["clip"]: r["captions"] for r in map(json.loads, whole)}
    captioner = Captioner.load(work / "captioner" / "model", max_new_tokens=48)
    with path.open("a") as file:
        todo = [i for i in rows if i not in done]
        for start in track(range(0, len(todo), 8), description="captions"):
            some = todo[start : start + 8]
            spans = [(drawn.clips[i]["offset"], len(drawn.clips[i]["times"])) for i in some]
            frames = np.concatenate([drawn.large[a : a + n] for a, n in spans])
            texts = iter(captioner.caption(frames, batch_size=len(frames)))
            for i, (_, n) in zip(some, spans, strict=True):
                done[i] = [next(texts) for _ in range(n)]
                file.write(json.dumps({"clip": i, "captions": done[i]}) + "\n")
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    drawn = DrawnClips.open(args.work / "held")
    scores = torch.load(args.work / "scores.pt", weights_only=True).tolist()
    rows = list(range(len(scores)))
    captions = captions_of(args.work, drawn, rows)
    vlm = VisionLanguageModel.load(args.work / "embedder" / "model", frame_pixels=FRAME_PIXELS)
    by_length: dict[int, list[int]] = defaultdict(list)
    for i in rows:
        by_length[len(drawn.clips[i]["times"])].append(i)
    lengths = sorted(n for n in by_length if len(by_length[n]) >= args.batch)
    weights = np.array([len(by_length[n]) for n in lengths], dtype=float)

    def batch_at(step: int) -> list[AugmentedClip]:
        """Clips with equally many frames."""
        rng = np.random.default_rng((SEED, 3, step))
        length = int(rng.choice(lengths, p=weights / weights.sum()))
        some = rng.choice(by_length[length], args.batch, replace=False)
        return [
            AugmentedClip(
                clip,
                tuple(
                    Caption(time_s=c.time_s, text=text)
                    for c, text in zip(clip.captions, captions[int(i)], strict=True)
                ),
                dict(zip(policy().labels, scores[int(i)], strict=True)),
            )
            for i, clip in zip(some, batch(vlm, drawn, some), strict=True)
        ]

    config = LoopConfig(
        steps=args.steps, warmup=20, lr=3e-3, muon_lr=None, weight_decay=0.0, checkpoint_every=50
    )
    train_reasoner(
        vlm,
        policy(),
        batch_at,
        args.work / "reasoner",
        config,
        rank=32,
        alpha=64,
        boolean_weight=1.0,
    )
