"""What each stage costs: tokens, operations, memory, disk; from configurations and lengths alone.

Knows the formulas, and what they leave out. Loads no weights and reads no data.

Memory of a training process, in bytes: 4 a weight (float32), 2 a weight for the copies that bfloat16 autocast
keeps, 4 + 8 a trained weight (gradient; AdamW's two moments), what autograd keeps for the backward pass
(`activation_bytes`), and 12 a logit (logits, softmax, gradient). Of a process that only reads: 4 a weight and
a batch's cache and widest layer. Neither counts what allocator and libraries add: take a tenth more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from safelens.captioner_cost import caption_flops
from safelens.vlm_cost import (
    ATTENTION_BACKWARD,
    head_training_flops,
    language_flops,
    language_training_flops,
    lora_parameters,
    vision_flops,
    vision_training_flops,
)

PROMPT_TOKENS = 16
"""Of the captioner's prompt, about."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of each part of a sequence, and the patches of its video.

    Attributes:
        head: the policy and what opens the chat.
        video: timestamps and frames.
        question: what S1 reads.
        closing: from the question to the guardrail answer.
        answer: of the guardrail answer.
        request: captions and scores, to the reasoned answer.
        trace: of the reasoned answer.
        grid: (time, height, width) in patches.
    """

    head: int
    video: int
    question: int
    closing: int
    answer: int
    request: int
    trace: int
    grid: tuple[int, int, int]

    @property
    def screening(self) -> int:
        """Tokens after the head of a sequence that ends with the guardrail answer."""
        return self.video + self.question + self.closing + self.answer

    @property
    def read(self) -> int:
        """Tokens after the head that S1 runs."""
        return self.video + self.question


@dataclass(frozen=True)
class Model:
    """A Qwen3-VL by its configuration.

    Attributes:
        config: a `Qwen3VLConfig`.
    """

    config: Any

    @property
    def text(self) -> Any:
        """The language model's configuration."""
        return self.config.text_config

    @cached_property
    def weights(self) -> tuple[int, int]:
        """Weights of all, and of the vision tower alone; counted on a model without storage."""
        import torch
        from transformers import AutoModelForImageTextToText
        from transformers.initialization import no_init_weights

        with no_init_weights(), torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(self.config)
        model.tie_weights()
        vision = sum(p.numel() for p in model.model.visual.parameters())
        return sum(p.numel() for p in model.parameters()), vision

    def trained(self, rank: int) -> int:
        """Weights that training changes; rank 0 is all."""
        return lora_parameters(self.text, rank) if rank else self.weights[0]

    def embedder_flops(self, n: Lengths, rows: int, rank: int) -> float:
        """Training on one clip's guardrail answer, the head shared by ``rows`` clips.

        Captions that records may bring to the embedder's training are left out; SafeWatch's have none.
        """
        t, lora = self.text, rank or None
        tower = vision_flops if rank else vision_training_flops
        return (
            language_training_flops(t, n.head, 0, lora, read=False) / rows
            + language_training_flops(t, n.screening, n.head, lora)
            + head_training_flops(t, n.answer, trained=not rank)
            + tower(self.config.vision_config, *n.grid)
        )

    def reasoner_flops(self, n: Lengths, rows: int, rank: int, *, separate: bool) -> float:
        """Training on one clip's reasoned answer; an adapter continues a cache that needs no gradient."""
        t, lora, new = self.text, rank or None, n.request + n.trace
        head = head_training_flops(t, n.trace, trained=not rank)
        if not separate:
            past = n.head + n.read
            return self.screening_flops(n) + language_training_flops(t, new, past, lora) + head
        tower = vision_flops if rank else vision_training_flops
        return (
            language_training_flops(t, n.head, 0, lora, read=False) / rows
            + language_training_flops(t, n.read + new, n.head, lora)
            + head
            + tower(self.config.vision_config, *n.grid)
        )

    def screening_flops(self, n: Lengths) -> float:
        """S1's states of one clip, the policy's cache being there."""
        return language_flops(self.text, n.read, n.head) + vision_flops(
            self.config.vision_config, *n.grid
        )

    def influence_flops(self, n: Lengths) -> float:
        """One clip's gradient at the last block.

        Forward through all blocks but the last; in the last the screening's tokens forward, of the head
        the projections before attention alone; the gradients of every layer's output, and each layer's
        weight gradient. Products with the class means are left out: they are less than a thousandth.
        """
        t, own = self.text, n.screening
        blocks = t.num_hidden_layers
        queries = t.num_attention_heads * t.head_dim
        keys = t.num_key_value_heads * t.head_dim
        behind = queries * t.hidden_size + 3 * t.hidden_size * t.intermediate_size
        before = t.hidden_size * (queries + 2 * keys)
        attention = 4 * queries * (own * n.head + own * (own + 1) / 2)
        return (
            language_flops(t, own, n.head) * (blocks - 1) / blocks
            + vision_flops(self.config.vision_config, *n.grid)
            + (2 * (before + behind) * own + 2 * before * n.head + attention)
            + (2 * behind * own + ATTENTION_BACKWARD * attention)
            + (2 * (before + behind) * own + 4 * t.hidden_size * keys * n.head)
            + head_training_flops(t, n.answer, trained=False)
        )

    def training_bytes(
        self, n: Lengths, new: int, logits: int, rows: int, rank: int, *, bf16: bool, past: int
    ) -> float:
        """Memory of a training process; see the module's docstring.

        Args:
            n: lengths.
            new: tokens of a row that autograd follows.
            logits: of these, tokens that are learned.
            rows: clips run at once.
            rank: of LoRA, 0 for all weights.
            bf16: autocast.
            past: tokens of a row that are in a cache without gradient.
        """
        weights, trained = self.weights[0], self.trained(rank)
        tower = (
            0.0 if rank else vision_activation_bytes(self.config.vision_config, n.grid, bf16=bf16)
        )
        cache = 8 * past * self.text.num_hidden_layers * self.text.num_key_value_heads
        return (
            weights * (6 if bf16 else 4)
            + 12 * trained
            + rows * new * activation_bytes(self.text, bf16=bf16, rank=rank)
            + rows * (tower + cache * self.text.head_dim + 12 * logits * self.text.vocab_size)
        )

    def reading_bytes(self, n: Lengths, rows: int) -> float:
        """Memory of a process that runs ``rows`` clips in float32 without gradients."""
        t, tokens = self.text, n.head + n.screening
        cache = 8 * t.num_hidden_layers * t.num_key_value_heads * t.head_dim
        widest = 16 * t.intermediate_size
        return 4 * self.weights[0] + rows * tokens * (cache + widest)


def activation_bytes(text: Any, *, bf16: bool, rank: int = 0) -> float:
    """What autograd keeps of one token in all blocks of the language model, without checkpointing.

    In each block, in float32: the residual stream at both norms, twice as the norm computes on it (4 width),
    and queries and keys at theirs (2 of each). In the type of computation: the norms' outputs (2 width),
    queries, keys and values as attention takes them with keys and values repeated for every query head and
    attention's output (4 queries), and four times the width of the feed-forward layer. LoRA adds the
    adapters' inner states. An estimate: within a quarter of what PyTorch keeps on a small model.

    Args:
        text: the language model's configuration.
        bf16: autocast; halves what linear layers and attention keep.
        rank: of LoRA.
    """
    size = 2 if bf16 else 4
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    wide = 4 * (4 * text.hidden_size + 2 * (queries + keys))
    narrow = size * (2 * text.hidden_size + 4 * queries + 4 * text.intermediate_size + 7 * rank)
    return float(text.num_hidden_layers * (wide + narrow))


def vision_activation_bytes(vision: Any, grid: tuple[int, int, int], *, bf16: bool) -> float:
    """What autograd keeps of the vision tower: 8 widths and 3 of the feed-forward layer a patch and block."""
    size = 2 if bf16 else 4
    a_patch = 8 * vision.hidden_size + 3 * vision.intermediate_size
    return float(size * math.prod(grid) * vision.depth * a_patch)


def captioner_flops(config: Any, new_tokens: int) -> float:
    """One frame's caption.

    Args:
        config: a `Florence2Config`.
        new_tokens: tokens of a caption.
    """
    side, shrink = _side(config), math.prod(config.vision_config.patch_stride)
    read = (side // shrink) ** 2 + 1 + PROMPT_TOKENS
    return caption_flops(config, (side, side), read, new_tokens)


def captioner_weights(config: Any) -> int:
    """Weights of a Florence-2; counted on a model without storage."""
    import torch
    from transformers import Florence2ForConditionalGeneration
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device("meta"):
        model = Florence2ForConditionalGeneration(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def _side(config: Any) -> int:
    """Side of a captioner's pictures in pixels."""
    vision = config.vision_config
    shrink = math.prod(vision.patch_stride)
    side = max(shrink, 768 // shrink * shrink)  # the published models' processor gives 768
    return min(side, vision.max_position_embeddings * shrink)
