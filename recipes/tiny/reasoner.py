"""Stage: train the adapter that continues S1's cache, on the traces of clips with equally many frames.

Knows which clips make a batch. Knows nothing of how a trace came about.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from recipes.tiny.data import DrawnReader
from recipes.tiny.parts import SEED, load_vlm, policy, sets_of, use_all_cores
from safelens.data.records import Record, read_records
from safelens.train.clips import Decoded, augmented
from safelens.train.loop import LoopConfig
from safelens.train.reasoner import AugmentedClip, train_reasoner


def train(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: Algorithm 1's last lines, S2."""
    use_all_cores()
    vlm = load_vlm(needs["embedder"])
    reader = DrawnReader(sets_of(needs), "small")
    size = settings["batch"]
    by_length: dict[int, list[Record]] = defaultdict(list)
    for record in read_records(needs["traces"] / "records.jsonl"):
        by_length[len(record.captions)].append(record)
    lengths = sorted(n for n, some in by_length.items() if len(some) >= size)
    weights = np.array([len(by_length[n]) for n in lengths], dtype=float)

    def batch_at(number: int) -> list[AugmentedClip]:
        rng = np.random.default_rng((SEED, 3, number))
        alike = by_length[int(rng.choice(lengths, p=weights / weights.sum()))]
        some = [alike[i] for i in rng.choice(len(alike), size, replace=False)]
        return augmented(vlm, policy(), [Decoded(r, reader.read(r.video)) for r in some])

    config = LoopConfig(
        steps=settings["steps"],
        warmup=20,
        lr=settings["lr"],
        muon_lr=None,
        weight_decay=0.0,
        checkpoint_every=50,
    )
    train_reasoner(
        vlm,
        policy(),
        batch_at,
        out,
        config,
        rank=settings["rank"],
        alpha=settings["alpha"],
        boolean_weight=settings["boolean_weight"],
    )
