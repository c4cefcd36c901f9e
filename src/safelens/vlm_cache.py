"""What a vision-language model holds after it has read: caches that fork, and batches of videos.

Knows keys, values, positions and costs of sequences. Runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from safelens.vlm_cost import Spent
from safelens.vlm_inputs import EncodedVideo


@dataclass
class Context:
    """A cache and where the next token goes.

    Attributes:
        cache: keys and values of B sequences of the same length.
        position: rotary position of the next text token.
        spent: what these sequences have cost.
    """

    cache: DynamicCache
    position: int
    spent: Spent = field(default_factory=Spent)

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return int(self.cache.get_seq_length())

    @property
    def rows(self) -> int:
        """Number of sequences held."""
        return len(_pairs(self.cache)[0][0])

    def fork(self, rows: int = 1) -> Context:
        """A copy repeated over ``rows`` that can be continued freely; what it costs is its own."""
        pairs = [
            (keys.repeat_interleave(rows, 0), values.repeat_interleave(rows, 0))
            for keys, values in _pairs(self.cache)
        ]
        return Context(DynamicCache(pairs), self.position)

    def select(self, row: int, tokens: Sequence[tuple[int, int]]) -> Context:
        """A copy of one row with only the tokens of the given [start, end) ranges.

        The tokens keep their rotary positions. What is spent on the copy is its own.
        """

        def cut(states: torch.Tensor) -> torch.Tensor:
            # A plain slice would keep the whole batch in memory.
            return torch.cat([states[row : row + 1, :, a:b] for a, b in tokens], dim=2)

        pairs = [(cut(keys), cut(values)) for keys, values in _pairs(self.cache)]
        return Context(DynamicCache(pairs), self.position)

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """Rows of equal length as one batch that goes on at the first one's position."""
        layers = zip(*(_pairs(c.cache) for c in contexts), strict=True)
        pairs = [
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
            for layer in layers
        ]
        return Context(DynamicCache(pairs), contexts[0].position)

    def crop(self, tokens: int) -> None:
        """Take the last ``tokens`` text tokens off."""
        if tokens:
            self.cache.crop(-tokens)
            self.position -= tokens


@dataclass
class Prefilled:
    """What a batch of videos left behind after prefill; rows are [head | video | tail | padding].

    Attributes:
        hidden: last hidden states of the new tokens, shape (B, L, D).
        lengths: real new tokens of each row.
        tail_length: how many of a row's last real tokens are the tail.
        head_length: tokens of the shared head.
        spent: what each row has cost; shared with the contexts that are made of it.
        vision: the vision tower's output of each row, shape (tokens, D).
    """

    hidden: torch.Tensor
    lengths: list[int]
    tail_length: int
    head_length: int
    spent: list[Spent]
    vision: Sequence[torch.Tensor]
    _cache: DynamicCache
    _positions: list[int]
    _videos: list[EncodedVideo]

    def context(self, row: int) -> Context:
        """A copy of one row's cache, without its padding, ready to be continued."""
        whole = Context(self._cache, self._positions[row])
        found = whole.select(row, [(0, self.head_length + self.lengths[row])])
        found.spent = self.spent[row]
        return found

    def tail_states(self, row: int, last: int) -> torch.Tensor:
        """States of the tail's last tokens, at most ``last`` of them, shape (T, D)."""
        end = self.lengths[row]
        return self.hidden[row, end - min(last, self.tail_length) : end]

    def pixels(self, row: int) -> torch.Tensor:
        """The patches that the vision tower was given, shape (patches, values)."""
        return self._videos[row].pixels

    def steps(self, row: int) -> int:
        """Temporal steps of the video."""
        return len(self._videos[row].blocks)

    def moments(self, row: int) -> list[Context]:
        """For each temporal step of the video, the head and that step's block alone, before the tail.

        Blocks keep their true positions, and have seen what came before them: they were cut from
        the video's own cache. The tail can be run again on each.
        """
        whole = Context(self._cache, self._positions[row] - self.tail_length)
        base = self.head_length
        return [
            whole.select(row, [(0, base), (base + a, base + b)])
            for a, b in self._videos[row].blocks
        ]


def _pairs(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, (B, heads, L, D)."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]
