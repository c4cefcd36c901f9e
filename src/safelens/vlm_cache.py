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

    @classmethod
    def of(cls, layers: Iterable[Sequence[torch.Tensor]]) -> Context:
        """A context that holds such :attr:`states`, at no position: it is there to be joined to others."""
        return cls(_cache_of(layers), 0)

    @property
    def states(self) -> list[tuple[torch.Tensor, ...]]:
        """What each layer holds, rows in dimension 0 and tokens in 2."""
        return states_of(self.cache)

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

    def keep(self, places: torch.Tensor) -> Context:
        """A copy of the only row with only the tokens at these places (N,), which keep their rotary positions."""
        found = self._changed(lambda states: states[:1].index_select(2, places.to(states.device)))
        found.spent = self.spent
        return found

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


class Joined:
    """What contexts of one row hold, as one: whatever comes next sees all of it.

    It holds nothing itself, so it costs no memory and nothing to make; its forks are the copies that are continued.

    Args:
        parts: a convolution goes on behind the last of them.
        position: rotary position of the next token.
    """

    def __init__(self, parts: Sequence[Context], position: int) -> None:
        self.parts, self.position = tuple(parts), position

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return sum(part.length for part in self.parts)

    def fork(self, rows: int = 1) -> Context:
        """A copy repeated over ``rows`` that can be continued freely; what it costs is its own."""
        layers = zip(*(part.states for part in self.parts), strict=True)
        together = (
            [
                torch.cat([states.expand(rows, *states.shape[1:]) for states in kinds], dim=2)
                for kinds in zip(*layer, strict=True)
            ]
            for layer in layers
        )
        return Context(_cache_of(together), self.position)


Head = Context | Joined
"""What comes before every video: forked over them, and never continued itself."""


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
        relevance: of each row's video tokens to each category, shape (categories, tokens), where it was measured.
    """

    hidden: torch.Tensor
    lengths: list[int]
    tail_length: int
    head_length: int
    spent: list[Spent]
    vision: Sequence[torch.Tensor]
    _cache: Cache
    _positions: list[int]
    _starts: list[int]
    """Rotary positions at which the tails begin."""
    _videos: list[EncodedVideo]
    relevance: list[torch.Tensor] | None = None

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
            _starts=[self._starts[row]],
            _videos=[replace(video, pixels=video.pixels.clone())],
            relevance=None if self.relevance is None else [self.relevance[row]],
        )

    def asked(
        self,
        row: int,
        context: Context,
        tail: torch.Tensor,
        *,
        tail_length: int,
        kept: torch.Tensor | None = None,
        relevance: torch.Tensor | None = None,
    ) -> Prefilled:
        """One row with a tail that was run behind it, of a batch that was read without one.

        Args:
            row: which.
            context: [head | kept of the video | tail]; it is held, not copied.
            tail: hidden states of what was run behind the video, shape (1, L, D).
            tail_length: how many of its last tokens count as the tail.
            kept: which of the row's tokens are still there, bool (length,); all by default.
            relevance: see the class.
        """
        video, length = self._videos[row], self.lengths[row]
        hidden = self.hidden[row : row + 1, :length]
        if kept is not None:
            place = [0, *kept.cumsum(0).tolist()]
            blocks = tuple((place[a], place[b]) for a, b in video.blocks)
            video = replace(video, ids=video.ids[kept.cpu()], blocks=blocks)
            hidden = hidden[:, kept]
        together = torch.cat([hidden, tail], dim=1)
        return Prefilled(
            hidden=together,
            lengths=[together.shape[1]],
            tail_length=tail_length,
            head_length=self.head_length,
            spent=[self.spent[row]],
            vision=[self.vision[row]],
            _cache=context.cache,
            _positions=[context.position],
            _starts=[self._starts[row]],
            _videos=[video],
            relevance=None if relevance is None else [relevance],
        )

    @staticmethod
    def stack(rows: Sequence[Prefilled]) -> Prefilled:
        """Batches of one row each, behind heads of one length, as one batch, right padded."""
        if len(rows) == 1:
            return rows[0]
        longest = max(row.lengths[0] for row in rows)
        missing = [longest - row.lengths[0] for row in rows]
        layers = (
            [
                torch.cat([_lengthened(s, m, 2) for s, m in zip(kind, missing, strict=True)])
                for kind in zip(*layer, strict=True)
            ]
            for layer in zip(*(states_of(row._cache) for row in rows), strict=True)
        )
        relevance = [one for row in rows for one in row.relevance or ()]
        return replace(
            rows[0],
            hidden=torch.cat(
                [_lengthened(row.hidden, m, 1) for row, m in zip(rows, missing, strict=True)]
            ),
            lengths=[row.lengths[0] for row in rows],
            spent=[row.spent[0] for row in rows],
            vision=[row.vision[0] for row in rows],
            _cache=_cache_of(layers),
            _positions=[row._positions[0] for row in rows],
            _starts=[row._starts[0] for row in rows],
            _videos=[row._videos[0] for row in rows],
            relevance=relevance or None,
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

    def grid(self, row: int) -> tuple[int, int, int]:
        """The video's (steps, height, width) in patches."""
        steps, height, width = self._videos[row].grid[0].tolist()
        return steps, height, width

    def ids(self, row: int) -> torch.Tensor:
        """Token ids of the video and of what leads to it, shape (L,)."""
        return self._videos[row].ids

    def start(self, row: int) -> int:
        """Rotary position at which the tail begins."""
        return self._starts[row]

    def moments(self, row: int) -> list[Context]:
        """For each temporal step of the video, what comes before it and that step's block alone, before the tail.

        Blocks keep their true positions, and have seen what came before them: they were cut from
        the video's own cache. The tail can be run again on each, at the row's cost.
        """
        whole = Context(self._cache, self._starts[row])
        base = self.head_length
        before = (0, base + self._videos[row].lead)
        found = [whole.select(row, [before, (base + a, base + b)]) for a, b in self.blocks(row)]
        for moment in found:
            moment.spent = self.spent[row]
        return found


def states_of(cache: Cache) -> list[tuple[torch.Tensor, ...]]:
    """What each layer holds, all of it with rows in dimension 0 and tokens in 2."""
    layers: list[Any] = cache.layers
    return [
        (layer.inputs,) if isinstance(layer, ConvolutionLayer) else (layer.keys, layer.values)
        for layer in layers
    ]


def _lengthened(states: torch.Tensor, tokens: int, dim: int) -> torch.Tensor:
    """States with as many tokens of zeros behind them."""
    shape = list(states.shape)
    shape[dim] = tokens
    return torch.cat([states, states.new_zeros(shape)], dim=dim)


def _cache_of(layers: Iterable[Sequence[torch.Tensor]]) -> Cache:
    """A cache that holds such states."""
    found: list[Any] = []
    for states in layers:
        if len(states) == 1:
            found.append(ConvolutionLayer())
            found[-1].update_conv_state(states[0])
        else:
            found.append(DynamicLayer())
            found[-1].lazy_initialization(*states)
            found[-1].keys, found[-1].values = states  # `update` would copy them
    return Cache(layers=found)
