"""Several continuations of one sequence in one pass: none sees another, and the sequence is held once.

Knows tokens, places and masks. Knows nothing of what is continued, or why::

    [ sequence ........ | what all begin with | continuation 1 |
                                              | continuation 2 | ...     at the same rotary positions

A copy of the sequence for each continuation would give the same, and take as many times its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

Span = tuple[int, int]
"""Tokens of a cache from the first number up to the second."""


@dataclass(frozen=True)
class Branches:
    """Continuations laid one behind the other.

    Attributes:
        stem: what all begin with, shape (S,).
        parts: the rest of each, at least one token.
    """

    stem: torch.Tensor
    parts: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, texts: Sequence[torch.Tensor]) -> Branches:
        """Divide token ids (L,) into what is common and what is not.

        Raises:
            ValueError: there is none, or one is empty.
        """
        if not texts or any(len(text) == 0 for text in texts):
            raise ValueError("expected at least one continuation, each of at least one token")
        whole = pad_sequence(list(texts), batch_first=True, padding_value=-1)
        differs = (whole != whole[0]).any(0).nonzero()
        common = int(differs[0]) if len(differs) else whole.shape[1]
        common = min(common, *(len(text) - 1 for text in texts))
        return cls(texts[0][:common], tuple(text[common:] for text in texts))

    @property
    def ids(self) -> torch.Tensor:
        """All tokens of the parts, shape (N,)."""
        return torch.cat(self.parts)

    @property
    def places(self) -> torch.Tensor:
        """Of each of them in its own part, shape (N,)."""
        return torch.cat([torch.arange(len(part)) for part in self.parts])

    @property
    def ends(self) -> torch.Tensor:
        """Where each part ends among them, shape (C,)."""
        return torch.tensor([len(part) for part in self.parts]).cumsum(0) - 1

    @property
    def of_part(self) -> torch.Tensor:
        """Of each of them its part's number, shape (N,)."""
        lengths = torch.tensor([len(part) for part in self.parts])
        return torch.arange(len(self.parts)).repeat_interleave(lengths)

    @property
    def seen(self) -> torch.Tensor:
        """Which of them each sees: those of its part up to itself, bool (N, N)."""
        part, places = self.of_part, self.places
        return (part[:, None] == part) & (places[:, None] >= places)

    def past_seen(self, past: int, own: Sequence[Span]) -> torch.Tensor:
        """Which tokens of a cache each of them sees, bool (N, past).

        Args:
            past: tokens in the cache.
            own: what of it each part sees and the others do not; empty if all see all.

        Raises:
            ValueError: not one for each part.
        """
        if not own:
            return torch.ones(len(self.ids), past, dtype=torch.bool)
        if len(own) != len(self.parts):
            raise ValueError(f"{len(own)} spans of the cache for {len(self.parts)} continuations")
        held = torch.zeros(len(own), past, dtype=torch.bool)
        for row, (start, end) in zip(held, own, strict=True):
            row[start:end] = True
        return (held | ~held.any(0))[self.of_part]


def branched(
    branches: Branches,
    inputs: Mapping[str, torch.Tensor],
    lengths: Sequence[int],
    positions: Sequence[int],
    past: int,
    own: Sequence[Span] = (),
) -> dict[str, torch.Tensor]:
    """A model's inputs for right-padded rows with the parts of some continuations behind each.

    Args:
        branches: their stem is part of the rows.
        inputs: of the rows alone, as for a causal pass.
        lengths: real tokens of each row.
        positions: rotary position of what comes behind each.
        past: tokens in the cache.
        own: see :meth:`Branches.past_seen`; what all begin with sees all.
    """
    ids, before = inputs["input_ids"], inputs["position_ids"]
    count, length = ids.shape
    new = length + len(branches.ids)
    mask = torch.zeros(count, 1, new, past + new, dtype=torch.bool, device=ids.device)
    mask[:, :, :length, :past] = True
    mask[:, :, length:, :past] = branches.past_seen(past, own)
    mask[:, :, :length, past : past + length] = torch.ones(length, length).tril().bool()
    real = torch.arange(length) < torch.tensor(lengths)[:, None]
    mask[:, :, length:, past : past + length] = real[:, None, None]
    mask[:, :, length:, past + length :] = branches.seen
    behind = (torch.tensor(positions)[:, None] + branches.places).to(before)
    return {
        **inputs,
        "input_ids": torch.cat([ids, branches.ids.to(ids).expand(count, -1)], dim=1),
        "position_ids": torch.cat([before, behind.expand(*before.shape[:-2], -1, -1)], dim=-1),
        "attention_mask": mask,
    }
