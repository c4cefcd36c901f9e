"""Stage: train the adapter that continues S1's cache, on the traces of clips with equally many frames.

Knows which clips make a batch. Knows nothing of how a trace came about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
    alike = EqualLengths(read_records(needs["traces"] / "records.jsonl"), settings["batch"])

    def batch_at(number: int) -> list[AugmentedClip]:
        some = alike.drawn(np.random.default_rng((SEED, 3, number)))
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


class EqualLengths:
    """Records by their number of captions, which is that of their frames.

    Args:
        records: With captions.
        size: Of a batch; clips of a length that is rarer are left out.
    """

    def __init__(self, records: Sequence[Record], size: int) -> None:
        self._by_length: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            self._by_length[len(record.captions)].append(record)
        self._size = size
        self._lengths = sorted(n for n, some in self._by_length.items() if len(some) >= size)
        counts = np.array([len(self._by_length[n]) for n in self._lengths], dtype=float)
        self._weights = counts / counts.sum()

    def drawn(self, rng: np.random.Generator) -> list[Record]:
        """A batch of one length."""
        alike = self._by_length[int(rng.choice(self._lengths, p=self._weights))]
        return [alike[i] for i in rng.choice(len(alike), self._size, replace=False)]
