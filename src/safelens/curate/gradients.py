"""Per-sample gradients of the guardrail loss at the last transformer block's linear layers.

Knows the model and how a gradient factors. Knows nothing of what the gradients are compared with.

Only the last block is differentiated: the blocks below run without gradient, once for the head that all
samples share and once per sample for the rest. The last block then runs on whole sequences, head included,
because its key and value projections read the head as well. The result is the gradient of plain autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class GradientCollector:
    """Gradients of (video, prompt, answer) samples that share a head.

    Args:
        vlm: The model; its weights are left alone and get no gradient.
        head: The text that all samples begin with, as in `VisionLanguageModel.layout`.
    """

    def __init__(self, vlm: VisionLanguageModel, head: str) -> None:
        self._vlm = vlm
        language = vlm.model.model.language_model
        self._block: nn.Module = language.layers[-1]
        self._norm: nn.Module = language.norm
        self.layers: dict[str, nn.Linear] = {
            name: module
            for name, module in self._block.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in name
        }
        """The layers, by their name within the block; gradients come in this order."""
        self._head = vlm.prefill_text(head)
        ids = vlm.ids(head)[None].to(vlm.device)
        positions = torch.arange(ids.shape[1], device=vlm.device).view(1, 1, -1).expand(3, 1, -1)
        self._head_states, self._head_rotary = self._entering(input_ids=ids, position_ids=positions)

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
        states, rotary = self._entering(
            input_ids=rows.ids,
            position_ids=rows.positions,
            pixel_values_videos=rows.pixels,
            video_grid_thw=rows.grids,
            past_key_values=self._head.fork(len(batch)).cache,
            use_cache=True,
        )
        states = _behind(self._head_states, states).requires_grad_(True)
        cos, sin = (_behind(*pair) for pair in zip(self._head_rotary, rotary, strict=True))
        with torch.enable_grad(), self._recording() as calls:
            hidden = self._norm(
                self._block(
                    states,
                    attention_mask=_causal(states.shape[1], states),
                    position_embeddings=(cos, sin),
                )
            )
            first = self._head.length
            losses = torch.stack(
                [
                    self._loss(hidden[i, first:], rows.ids[i], length, len(example.turns[0][1]))
                    for i, (example, length) in enumerate(zip(batch, rows.lengths, strict=True))
                ]
            )
        inputs, outputs = zip(*(calls[name] for name in self.layers), strict=True)
        gradients = torch.autograd.grad(losses.sum(), outputs)
        return SampleGradients(
            losses.detach().float(),
            tuple(x.float() for x in inputs),
            tuple(g.float() for g in gradients),
        )

    def _loss(self, hidden: Tensor, ids: Tensor, length: int, answer: int) -> Tensor:
        logits = self._vlm.model.lm_head(hidden[length - answer - 1 : length - 1])
        return F.cross_entropy(logits.float(), ids[length - answer : length])

    def _entering(self, **inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States (B, L, D) that enter the last block, and their rotary embeddings."""
        found: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args[0], kwargs["position_embeddings"]))
            raise _LastBlockReached

        handle = self._block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self._vlm.model.model(**inputs)
        except _LastBlockReached:
            pass
        finally:
            handle.remove()
        states, (cos, sin) = found[0]
        return states.clone(), (cos.clone(), sin.clone())

    @contextmanager
    def _recording(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Each layer's (input, output) while the block runs; the input without its graph."""
        calls: dict[str, tuple[Tensor, Tensor]] = {}

        def record(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
                calls[name] = (args[0].detach(), output)

            return hook

        handles = [layer.register_forward_hook(record(name)) for name, layer in self.layers.items()]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()


def _behind(head: Tensor, own: Tensor) -> Tensor:
    """(1, H, D) repeated before each row of (B, L, D)."""
    return torch.cat([head.expand(len(own), -1, -1), own], dim=1)


def _causal(length: int, like: Tensor) -> Tensor:
    """An additive causal mask, shape (1, 1, length, length)."""
    mask = torch.full((length, length), torch.finfo(like.dtype).min, device=like.device)
    return mask.to(like.dtype).triu(1)[None, None]
