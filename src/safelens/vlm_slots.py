"""Sequences of unequal length in one cache, continued together.

Knows where the keys and values of each sequence lie. Runs no model.

Every sequence has a row of its own, from the row's start, so it grows where it lies: nothing is shifted or
copied when a sequence grows, takes tokens back, or ends beside others. Of each row the tokens behind its
length are left over from what was taken back; the mask hides them until they are overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from safelens.vlm_cache import Context, ConvolutionLayer, states_of

_STEP = 256
"""Tokens by which rows are lengthened at least."""


class _Places:
    """Where the tokens of the pass under way go.

    Attributes:
        rows: the rows that take part, one after the other.
        index: the places of each row's new tokens, shape (rows, new tokens).
        end: places up to which a row holds anything that is seen in this pass.
    """

    def __init__(self) -> None:
        self.rows = slice(0, 0)
        self.index = torch.zeros(0, 0, dtype=torch.long)
        self.end = 0

    @property
    def numbers(self) -> torch.Tensor:
        """Numbers of the rows, shape (rows, 1)."""
        return torch.arange(self.rows.start, self.rows.stop, device=self.index.device)[:, None]


class _Slots:
    """What a layer holds of all rows: tensors with rows in dimension 0 and tokens in 2."""

    def __init__(self, places: _Places, like: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.places = places
        self.held = [states.new_zeros(0, states.shape[1], 0, *states.shape[3:]) for states in like]

    def resize(self, rows: int, tokens: int) -> None:
        for i, states in enumerate(self.held):
            # zeros: what is masked must still be a number
            larger = states.new_zeros(rows, states.shape[1], tokens, *states.shape[3:])
            larger[: states.shape[0], :, : states.shape[2]] = states
            self.held[i] = larger

    def fill(self, row: int, given: Sequence[torch.Tensor]) -> None:
        for states, new in zip(self.held, given, strict=True):
            states[row, :, : new.shape[2]] = new[0]

    def move(self, row: int, to: int, tokens: int) -> None:
        for states in self.held:
            states[to, :, :tokens] = states[row, :, :tokens]

    def put(self, number: int, new: torch.Tensor) -> torch.Tensor:
        """Write a pass's new tokens (rows, ., tokens, ...) and give all that is held."""
        states = self.held[number]
        states[self.places.numbers, :, self.places.index] = new.transpose(1, 2)
        return states


class _AttentionSlots(_Slots, DynamicLayer):
    """Keys and values; the library hands its new ones to `update`."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, end = self.places.rows, self.places.end
        keys, values = (self.put(i, new) for i, new in enumerate((key_states, value_states)))
        return keys[rows, :, :end], values[rows, :, :end]

    def get_seq_length(self) -> int:
        return self.places.end


class _ConvolutionSlots(_Slots, ConvolutionLayer):
    """A short convolution's inputs; the library hands its new ones to `update_conv_state`."""

    def __init__(self, places: _Places, like: Sequence[torch.Tensor]) -> None:
        super().__init__(places, like)
        self.has_previous_state[0] = True

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        inputs = self.put(0, conv_states)
        index, reach = self.places.index, (conv_kernel_size or 1) - 1
        before = index[:, :1] + torch.arange(-reach, 0, device=index.device)
        seen = inputs[self.places.numbers, :, torch.cat([before, index], dim=1)]
        return seen.transpose(1, 2)


class Slots:
    """Sequences that are continued together, the first in row 0; their order changes when one leaves.

    Args:
        rows: most sequences.

    Attributes:
        lengths: tokens of each sequence.
        positions: rotary position of each sequence's next token.
        cache: what the model is given, between :meth:`open` and the end of its pass.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.lengths: list[int] = []
        self.positions: list[int] = []
        self.cache = Cache(layers=[])
        self._places = _Places()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def admit(self, context: Context) -> None:
        """Copy a context of one row to a new last row.

        Raises:
            ValueError: all rows are taken.
        """
        if len(self) == self.rows:
            raise ValueError(f"all {self.rows} rows are taken")
        states = states_of(context.cache)
        if not self.cache.layers:
            kinds = [_ConvolutionSlots if len(one) == 1 else _AttentionSlots for one in states]
            layers: list[Any] = [
                kind(self._places, one) for kind, one in zip(kinds, states, strict=True)
            ]
            self.cache = Cache(layers=layers)
        self._hold(context.length)
        for layer, one in zip(self._layers, states, strict=True):
            layer.fill(len(self), one)
        self.lengths.append(context.length)
        self.positions.append(context.position)

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Forget a sequence; the last one takes its row."""
        last = len(self) - 1
        if row != last:
            for layer in self._layers:
                layer.move(last, row, self.lengths[last])
        for numbers in (self.lengths, self.positions):
            numbers[row] = numbers[last]
            numbers.pop()

    def advance(self, row: int, tokens: int) -> None:
        """Count tokens that the last pass ran to a sequence, or take some back with a negative number."""
        self.lengths[row] += tokens
        self.positions[row] += tokens

    def open(
        self, rows: slice, tokens: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin a pass of as many new tokens in each of some rows, those that follow real ones included.

        Args:
            rows: which, one after the other.
            tokens: new ones of each row.
            device: where the model is.

        Returns:
            Rotary positions (rows, tokens), and which place each new token sees, shape (rows, 1, tokens, places).
        """
        places, lengths = self._places, self.lengths[rows]
        places.rows, places.end = rows, max(lengths) + tokens
        self._hold(places.end)
        steps = torch.arange(tokens, device=device)
        places.index = torch.tensor(lengths, device=device)[:, None] + steps
        seen = torch.arange(places.end, device=device) <= places.index[..., None]
        positions = torch.tensor(self.positions[rows], device=device)[:, None] + steps
        return positions, seen[:, None]

    @property
    def bytes(self) -> int:
        """What a pass reads of all sequences."""
        return sum(
            states[0, :, :1].numel() * states.element_size()
            for layer in self._layers
            for states in layer.held
        ) * sum(self.lengths)

    @property
    def _layers(self) -> list[Any]:
        layers: list[Any] = self.cache.layers
        return layers

    def _hold(self, tokens: int) -> None:
        """Make room for rows of this length."""
        if tokens > self._tokens:
            self._tokens = -(-max(tokens, self._tokens * 5 // 4) // _STEP) * _STEP
            for layer in self._layers:
                layer.resize(self.rows, self._tokens)
