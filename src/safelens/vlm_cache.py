"""What a vision-language model holds after it has read: caches that fork, and batches of videos.

Knows keys, values, positions and costs of sequences. Runs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from safelens.vlm_cost import Spent
from safelens.vlm_inputs import EncodedVideo


class ConvolutionLayer(LinearAttentionLayer):
    """What a short convolution has been given, token by token, shape (B, D, L).

    The library keeps the last few inputs, all that the next token needs; such a state cannot be cut by
    token, and padding enters it. With every input kept, a convolution's cache is cut, forked, cropped
    and padded as keys and values are; a layer then keeps D numbers a token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.record_past = True  # the library then always asks `update_conv_state`

    @property
    def inputs(self) -> torch.Tensor:
        """All that was given, shape (B, D, L)."""
        kept = self.conv_states[0]
        assert kept is not None
        return kept

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Called by the convolution: keeps its new inputs, gives them behind those that it still reaches."""
        past = self.conv_states[0]
        kept = conv_states if past is None else torch.cat([past, conv_states], dim=2)
        self.conv_states[0] = kept
        self.has_previous_state[0] = True
        reach = (conv_kernel_size or 1) - 1
        return kept[:, :, -(conv_states.shape[2] + reach) :]

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens off the end; their number is negative, as for the library's other layers."""
        self.conv_states[0] = self.inputs[:, :, :tokens_to_remove]


@dataclass
class Context:
    """A cache and where the next token goes.

    Attributes:
        cache: what the layers hold of B sequences of the same length.
        position: rotary position of the next text token.
        spent: what these sequences have cost.
    """

    cache: Cache
    position: int
    spent: Spent = field(default_factory=Spent)

    @classmethod
    def empty(cls, config: Any) -> Context:
        """Nothing read yet, by a model of this configuration."""
        text = config.get_text_config()
        types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        layers: list[Any] = [
            ConvolutionLayer() if kind == "conv" else DynamicLayer() for kind in types
        ]
        return cls(Cache(layers=layers), 0)

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return int(self.cache.get_seq_length())

    @property
    def rows(self) -> int:
        """Number of sequences held."""
        return len(states_of(self.cache)[0][0])

    def fork(self, rows: int = 1) -> Context:
        """A copy repeated over ``rows`` that can be continued freely; what it costs is its own."""
        return self._changed(lambda states: states.repeat_interleave(rows, 0))

    def select(self, row: int, tokens: Sequence[tuple[int, int]]) -> Context:
        """A copy of one row with only the tokens of the given [start, end) ranges.

        The tokens keep their rotary positions. What is spent on the copy is its own.
        """
        # A plain slice would keep the whole batch in memory.
        return self._changed(
            lambda states: torch.cat([states[row : row + 1, :, a:b] for a, b in tokens], dim=2)
        )

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """Rows of equal length as one batch that goes on at the first one's position."""
        layers = zip(*(states_of(c.cache) for c in contexts), strict=True)
        together = ([torch.cat(kinds) for kinds in zip(*rows, strict=True)] for rows in layers)
        return Context(_cache_of(together), contexts[0].position)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Context:
        layers = ([change(states) for states in layer] for layer in states_of(self.cache))
        return Context(_cache_of(layers), self.position)

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
    _cache: Cache
    _positions: list[int]
    _videos: list[EncodedVideo]

    def alone(self, row: int) -> Prefilled:
        """A copy of one row, without its padding; what it costs is charged to the same meter."""
        length, video = self.lengths[row], self._videos[row]
        whole = Context(self._cache, self._positions[row])
        return Prefilled(
            hidden=self.hidden[row : row + 1, :length].clone(),
            lengths=[length],
            tail_length=self.tail_length,
            head_length=self.head_length,
            spent=[self.spent[row]],
            vision=[self.vision[row].clone()],
            _cache=whole.select(row, [(0, self.head_length + length)]).cache,
            _positions=[self._positions[row]],
            _videos=[replace(video, pixels=video.pixels.clone())],
        )

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

    def blocks(self, row: int) -> tuple[tuple[int, int], ...]:
        """[start, end) of each temporal step among the row's new tokens."""
        return self._videos[row].blocks

    def moments(self, row: int) -> list[Context]:
        """For each temporal step of the video, the head and that step's block alone, before the tail.

        Blocks keep their true positions, and have seen what came before them: they were cut from
        the video's own cache. The tail can be run again on each.
        """
        whole = Context(self._cache, self._positions[row] - self.tail_length)
        base = self.head_length
        return [whole.select(row, [(0, base), (base + a, base + b)]) for a, b in self.blocks(row)]


def states_of(cache: Cache) -> list[tuple[torch.Tensor, ...]]:
    """What each layer holds, all of it with rows in dimension 0 and tokens in 2."""
    layers: list[Any] = cache.layers
    return [
        (layer.inputs,) if isinstance(layer, ConvolutionLayer) else (layer.keys, layer.values)
        for layer in layers
    ]


def _cache_of(layers: Iterable[Sequence[torch.Tensor]]) -> Cache:
    """A cache that holds such states."""
    found: list[Any] = []
    for states in layers:
        if len(states) == 1:
            found.append(ConvolutionLayer())
            found[-1].update_conv_state(states[0])
        else:
            found.append(DynamicLayer())
            found[-1].update(*states)
    return Cache(layers=found)
