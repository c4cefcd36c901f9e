"""SafeWorld clips as the stages take them, and the questions that are asked of them.

Knows drawn sets, groups of one length, and what a clip can be asked. Knows nothing of losses.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from recipes.safewatch_tiny.kinds import PHRASES, SEEN, kinds_of
from recipes.safewatch_tiny.policies import Ruled, explained
from recipes.tiny.data import DrawnReader
from recipes.tiny.parts import sets_of
from safelens.data.records import Record
from safelens.train.clips import Decoded, labelled
from safelens.train.embedder import LabelledClip
from safelens.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Shown:
    """A clip as model input, and its record."""

    record: Record
    clip: LabelledClip

    def under(self, policy: Ruled) -> LabelledClip:
        """The clip with labels and explanation by a policy."""
        labels = policy.labels(kinds_of(self.record))
        return replace(self.clip, labels=labels, explanation=explained(self.record, policy))


class Clips:
    """The training set's clips in groups of one length, so that thinned rows run together.

    Args:
        needs: folders of the stages, "train" among them.
        vlm: whose input they become.
    """

    def __init__(self, needs: dict[str, Path], vlm: VisionLanguageModel) -> None:
        sets = sets_of(needs)
        self._vlm = vlm
        self._reader = DrawnReader(sets, "small")
        self.records = sets["train"].records("train")
        self._by_length: dict[int, list[Record]] = defaultdict(list)
        for record in self.records:
            self._by_length[len(record.captions)].append(record)
        self._lengths = sorted(self._by_length)
        counts = np.array([len(self._by_length[n]) for n in self._lengths], dtype=float)
        self._weights = counts / counts.sum()

    def group(self, size: int, seed: tuple[int, ...], under: Ruled | None = None) -> list[Shown]:
        """Clips of one length, drawn by a seed; half of them violate a policy, if one is given and so many do."""
        rng = np.random.default_rng(seed)
        alike = self._by_length[int(rng.choice(self._lengths, p=self._weights))]
        order = [alike[i] for i in rng.permutation(len(alike))]
        if under is not None:
            found = [bool(under.labels(kinds_of(record))) for record in order]
            bad = [record for record, is_bad in zip(order, found, strict=True) if is_bad]
            good = [record for record, is_bad in zip(order, found, strict=True) if not is_bad]
            bad = bad[: size // 2]
            order = bad + good[: size - len(bad)]
        decoded = [Decoded(record, self._reader.read(record.video)) for record in order[:size]]
        clips = labelled(self._vlm, decoded)
        return [Shown(one.record, clip) for one, clip in zip(decoded, clips, strict=True)]


def asked(records: Sequence[Record], rng: random.Random) -> tuple[list[str], torch.Tensor]:
    """What to ask of some clips, words for what one or more of them show, and the answers.

    Returns:
        Phrases, one for each kind that may be spoken of; and whether each clip shows it, bool (B, C).
    """
    shown = [kinds_of(record) for record in records]
    kinds = sorted(frozenset().union(*shown).intersection(SEEN))
    rng.shuffle(kinds)
    phrases = [rng.choice(PHRASES[kind]) for kind in kinds]
    return phrases, torch.tensor([[kind in own for kind in kinds] for own in shown])
