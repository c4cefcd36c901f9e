"""Parallel Equivalent Policy Encoding: every category a block of cache, read alone (SafeWatch, section 3.2).

Knows how blocks are made, kept and put together. Knows texts, not policies; disk is `block_store`'s matter::

    trunk ........ | block of one category
                   | block of another ......      at the same rotary positions, none sees another
                   | ...
    trunk ........ | [all blocks] | what comes next sees all, from behind the longest block on

Attention does not mind in which order keys lie, so blocks compose in any subset and order, without being
computed or copied again: what comes next is read with each video, on a copy that is needed anyway. A short
convolution does mind: it goes on behind the trunk, in a block as in what comes next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from safelens.safewatch.block_store import BlockStore
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context, Joined

_HELD = 256
"""Most blocks in memory; the one that was asked for longest ago is forgotten first."""
_TRUNKS = 8
"""Most trunks in memory."""


@dataclass(frozen=True)
class Block:
    """One text, read behind a trunk that is not part of it.

    Attributes:
        held: its own tokens, one row; as blocks are shared, it is never continued.
        queries: of one layer's attention, not rotated, shape (heads, tokens, head size).
    """

    held: Context
    queries: torch.Tensor


def read_block(
    vlm: VisionLanguageModel, trunk: Context, ids: torch.Tensor, layer: int
) -> tuple[Block, torch.Tensor]:
    """Read a text behind a trunk, which is left as it was but for what it has cost; gradients flow if they may.

    Args:
        vlm: the model; no adapter of those that are switched on by name is on.
        trunk: one row.
        ids: of the text, shape (T,).
        layer: whose queries are kept.

    Returns:
        The block, and its hidden states (1, T, D).
    """
    start, end = trunk.length, trunk.length + len(ids)
    with vlm.only(None), vlm.attended(layer) as given:
        hidden = vlm.read(trunk, ids[None])
        with torch.no_grad():  # they rank tokens, and a rank has no gradient
            queries = vlm.family.queries(layer, given[0])[0]
    held = trunk.select(0, [(start, end)])
    trunk.crop(len(ids))
    return Block(held, queries), hidden


def compose(trunk: Context, blocks: Sequence[Block]) -> Joined:
    """A trunk with blocks that were read behind it; the next token sees all of them.

    The order of blocks changes the order in which attention sums up, and so the last bits of what comes next.
    """
    longest = max((block.held.length for block in blocks), default=0)
    return Joined([*(block.held for block in blocks), trunk], trunk.position + longest)


def middle_layer(vlm: VisionLanguageModel, layer: int | None) -> int:
    """The layer whose queries are kept: one that is asked for, or the middle one of those that attend.

    Raises:
        ValueError: the layer does not attend.
    """
    layers = vlm.family.attention_layers
    layer = layers[len(layers) // 2] if layer is None else layer
    vlm.family.attention(layer)
    return layer


class Blocks(Protocol):
    """Where a prompt has its categories from.

    Attributes:
        vlm: the model that reads them.
        layer: whose queries are kept.
    """

    vlm: VisionLanguageModel
    layer: int

    def of(self, trunk: str, texts: Sequence[str]) -> tuple[Context, list[Block]]:
        """A trunk, as a copy of one's own, and the blocks of some texts behind it.

        Raises:
            OSError: a folder of blocks cannot be written.
        """


class TrainedBlocks:
    """Blocks of a model in training: read anew each time, by the weights as they are, and gradients flow.

    Whatever is trained with the policy in view is trained through its blocks: their keys and values are made by
    the very weights that change, and kept ones would be those of a model that is gone. What is trained to continue
    frozen blocks, as S2's adapter, which is off while a policy is read, takes :class:`PolicyBlocks`.

    Args:
        vlm: the model.
        layer: whose queries are kept; the middle one of those that attend, by default.

    Raises:
        ValueError: the layer does not attend.
    """

    def __init__(self, vlm: VisionLanguageModel, *, layer: int | None = None) -> None:
        self.vlm = vlm
        self.layer = middle_layer(vlm, layer)

    def of(self, trunk: str, texts: Sequence[str]) -> tuple[Context, list[Block]]:
        """See :class:`Blocks`; all texts are read in one pass."""
        context = Context.empty(self.vlm.model.config)
        self.vlm.read(context, self.vlm.ids(trunk)[None])
        if not texts:
            return context, []
        rows = [self.vlm.ids(text) for text in texts]
        together = context.fork(len(rows))
        with self.vlm.attended(self.layer) as given:
            # right padded: no token sees what comes after it
            self.vlm.read(together, pad_sequence(rows, batch_first=True))
        with torch.no_grad():  # queries rank tokens, and a rank has no gradient
            queries = self.vlm.family.queries(self.layer, given[0])
        start = context.length
        return context, [
            Block(together.select(i, [(start, start + len(ids))]), queries[i, :, : len(ids)])
            for i, ids in enumerate(rows)
        ]


class PolicyBlocks:
    """The blocks of one model, for all policies: each text is read once behind each trunk. See :class:`Blocks`.

    Safe to use from several threads.

    Args:
        vlm: the model. Adapters are off while a policy is read, so blocks serve S1 and S2 alike.
        layer: whose queries are kept; the middle one of those that attend, by default.
        folder: where blocks are kept on disk as well; it may serve several models.

    Attributes:
        layer: whose queries are kept.
        read: how many blocks were computed so far, and neither remembered nor found on disk.

    Raises:
        ValueError: the layer does not attend.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        *,
        layer: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.vlm = vlm
        self.layer = middle_layer(vlm, layer)
        self.read = 0
        self._store = None if folder is None else BlockStore(folder)
        self._trunks: OrderedDict[str, Context] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, str], Block] = OrderedDict()

    @torch.inference_mode()
    def of(self, trunk: str, texts: Sequence[str]) -> tuple[Context, list[Block]]:
        """See :class:`Blocks`."""
        with self.vlm.only(None):  # nobody else may continue the trunk meanwhile
            if trunk not in self._trunks:
                self._trunks[trunk] = self.vlm.prefill_text(trunk)
            found = [self._block(trunk, text) for text in texts]
            context = self._trunks[trunk].fork()
            _forget(self._trunks, _TRUNKS)
            _forget(self._blocks, _HELD)
        return context, found

    def _block(self, trunk: str, text: str) -> Block:
        key = trunk, text
        if key not in self._blocks:
            self._blocks[key] = self._found(trunk, text) or self._made(trunk, text)
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def _found(self, trunk: str, text: str) -> Block | None:
        if self._store is None:
            return None
        kept = self._store.get(self._key(trunk, text), self.vlm.device)
        if kept is None:
            return None
        layers, queries = kept
        return Block(Context.of(layers), queries)

    def _made(self, trunk: str, text: str) -> Block:
        block, _ = read_block(self.vlm, self._trunks[trunk], self.vlm.ids(text), self.layer)
        self.read += 1
        if self._store is not None:
            self._store.put(self._key(trunk, text), block.held.states, block.queries)
        return block

    def _key(self, trunk: str, text: str) -> dict[str, object]:
        return {
            "model": self.vlm.language_sha256,
            "device": self.vlm.device.type,
            "trunk": self.vlm.ids(trunk).tolist(),
            "block": self.vlm.ids(text).tolist(),
            "layer": self.layer,
        }


def _forget(held: OrderedDict[Any, Any], most: int) -> None:
    while len(held) > most:
        held.popitem(last=False)
