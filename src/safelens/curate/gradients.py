"""Per-sample gradients of the guardrail loss at the last transformer block's linear layers.

Knows the model and how a gradient factors. Knows nothing of what the gradients are compared with.

Only the last block is differentiated: the blocks below run without gradient, once for the head that all
samples share and once per sample for the rest. Of the head the last block computes keys and values alone:
nothing else of it reaches the answer. The result is the gradient of plain autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from safelens.train.sequences import Example
from safelens.vlm import VisionLanguageModel


@dataclass(frozen=True)
class SampleGradients:
    """Gradients of B samples, kept as the factors they are products of.

    For a linear layer the gradient of sample b is sum_t g_bt x_bt^T over its tokens t.

    Attributes:
        losses: Mean cross-entropy over each sample's answer tokens, shape (B,).
        inputs: For each layer the tokens' inputs x, shape (B, T, in).
        output_gradients: For each layer the loss's gradient at the tokens' outputs g, shape (B, T, out).
    """

    losses: Tensor
    inputs: tuple[Tensor, ...]
    output_gradients: tuple[Tensor, ...]

    def weights(self) -> list[Tensor]:
        """Each layer's weight gradients, shape (B, out, in)."""
        return [
            torch.einsum("bto,bti->boi", g, x)
            for g, x in zip(self.output_gradients, self.inputs, strict=True)
        ]


class _LastBlockReached(Exception):
    """Ends a forward pass where the last block would begin."""


class _HeadCached(Exception):
    """Ends a forward pass where the head's keys and values are known."""


class _HeadCache:
    """The last block's keys and values, (B, heads, L, D): first the head's, then behind them the rest's."""

    def __init__(self) -> None:
        self._head: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the block's attention, as a `transformers.Cache` would be."""
        if self._head is None:
            self._head = keys, values
            raise _HeadCached
        return torch.cat([self._head[0], keys], dim=2), torch.cat([self._head[1], values], dim=2)


class GradientCollector:
    """Gradients of (video, prompt, answer) samples that share a head.

    Args:
        vlm: The model; its weights are left alone and get no gradient.
        head: The text that all samples begin with, as in `VisionLanguageModel.layout`.

    Raises:
        ValueError: The model's last block has no attention.
    """

    def __init__(self, vlm: VisionLanguageModel, head: str) -> None:
        self._vlm = vlm
        language = vlm.model.model.language_model
        self._block: nn.Module = language.layers[-1]
        if not hasattr(self._block, "self_attn"):
            raise ValueError(
                f"the last block of a {type(vlm.model).__name__} has no attention, through which a "
                "shared head is differentiated; use a model of Qwen3-VL or InternVL"
            )
        self._norm: nn.Module = language.norm
        self.layers: dict[str, nn.Linear] = {
            name: module
            for name, module in self._block.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in name
        }
        """The layers, by their name within the block; gradients come in this order."""
        self._head = vlm.prefill_text(head)
        inputs = vlm.text_inputs(vlm.ids(head)[None], 0)
        self._head_states, self._head_rotary = self._entering(inputs)

    @property
    def dimension(self) -> int:
        """Numbers in one gradient."""
        return sum(layer.weight.numel() for layer in self.layers.values())

    def __call__(self, batch: Sequence[Example]) -> SampleGradients:
        """Gradients of the mean cross-entropy over each sample's own answer tokens.

        Raises:
            ValueError: An example with several turns, or without answer tokens.
        """
        tails = []
        for example in batch:
            if len(example.turns) != 1 or not len(example.turns[0][1]):
                raise ValueError("a sample's gradient needs one turn with a non-empty answer")
            tails.append(torch.cat(example.turns[0]))
        rows = self._vlm.video_rows(self._head.position, [e.video for e in batch], tails)
        states, rotary = self._entering(rows.inputs, self._head.fork(len(batch)).cache)
        cache = _HeadCache()
        with torch.enable_grad(), self._recording() as calls:
            self._keys_and_values_of_head(cache, len(batch))
            hidden = self._norm(
                self._block(
                    states.requires_grad_(True),
                    attention_mask=_causal(self._head.length, states),
                    position_embeddings=rotary,
                    past_key_values=cache,
                )
            )
            losses = torch.stack(
                [
                    self._loss(hidden[i], rows.ids[i], length, len(example.turns[0][1]))
                    for i, (example, length) in enumerate(zip(batch, rows.lengths, strict=True))
                ]
            )
        found = [call for name in self.layers for call in calls[name]]
        gradients = iter(
            torch.autograd.grad(losses.sum(), [output for _, output in found], allow_unused=True)
        )
        inputs, outputs = [], []
        for name in self.layers:
            # without a gradient: of the head, what the answer does not depend on
            parts = [
                (x, g) for (x, _), g in zip(calls[name], gradients, strict=False) if g is not None
            ]
            inputs.append(torch.cat([x for x, _ in parts], dim=1).float())
            outputs.append(torch.cat([g for _, g in parts], dim=1).float())
        return SampleGradients(losses.detach().float(), tuple(inputs), tuple(outputs))

    def _keys_and_values_of_head(self, cache: _HeadCache, rows: int) -> None:
        """Fill the cache by the last block's own first steps on the head."""
        try:
            self._block(
                self._head_states.expand(rows, -1, -1).requires_grad_(True),
                attention_mask=None,
                position_embeddings=self._head_rotary,
                past_key_values=cache,
            )
        except _HeadCached:
            return
        raise RuntimeError("the last block computed no keys and values: its cache was not asked")

    def _loss(self, hidden: Tensor, ids: Tensor, length: int, answer: int) -> Tensor:
        logits = self._vlm.model.lm_head(hidden[length - answer - 1 : length - 1])
        # float64: where the model is sure, its gradient is one minus a probability that rounds to one
        return F.cross_entropy(logits.double(), ids[length - answer : length])

    def _entering(
        self, inputs: dict[str, Tensor], cache: Cache | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States (B, L, D) that enter the last block, and their rotary embeddings."""
        found: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args[0], kwargs["position_embeddings"]))
            raise _LastBlockReached

        handle = self._block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self._vlm.run(inputs, cache)
        except _LastBlockReached:
            pass
        finally:
            handle.remove()
        states, (cos, sin) = found[0]
        return states.clone(), (cos.clone(), sin.clone())

    @contextmanager
    def _recording(self) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
        """Each layer's (input, output) of every call; the input without its graph."""
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.layers}

        def record(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
                calls[name].append((args[0].detach(), output))

            return hook

        handles = [layer.register_forward_hook(record(name)) for name, layer in self.layers.items()]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()


def _causal(head: int, own: Tensor) -> Tensor:
    """An additive mask (1, 1, L, head + L) for states (B, L, D): all of the head, and what came before."""
    length = own.shape[1]
    least = torch.finfo(own.dtype).min
    mask = torch.full((length, head + length), least, dtype=own.dtype, device=own.device)
    return mask.triu(head + 1)[None, None]
