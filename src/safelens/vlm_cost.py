"""What a pass costs, by formula: floating-point operations of vision-language models, used and trained.

Knows configurations and lengths; needs no weights. Counts multiplications and additions of matrix products
and attention; norms, activations and rotary embeddings are left out. Attention counts what is seen: the
causal triangle and the past, where PyTorch's own counter takes every score that a kernel may compute. The
other parts of a system count themselves: `captioner_cost`, and the probe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass
class Spent:
    """What one sequence has cost so far.

    Padding to the length of other videos of a batch costs it nothing, so that a video costs the same in any
    batch; padding among the parts of one video, which are run for it alone, is counted.

    Attributes:
        prompt: tokens that a vision-language model read.
        generated: tokens that it wrote.
        flops: floating-point operations, of whatever ran on it; NaN where they cannot be known.
    """

    prompt: int = 0
    generated: int = 0
    flops: float = 0.0


def language_flops(config: Any, new: int, past: int) -> float:
    """Linear layers over ``new`` tokens, and their attention over the causal triangle and the past.

    Args:
        config: the model's text configuration.
        new: tokens run.
        past: tokens already in the cache.
    """
    queries, keys, width = _widths(config)
    linear = width * (2 * queries + 2 * keys) + 3 * width * config.intermediate_size
    seen = new * past + new * (new + 1) / 2
    return config.num_hidden_layers * (2 * linear * new + 4 * queries * seen)


def head_flops(config: Any, tokens: int) -> float:
    """The vocabulary's logits of ``tokens`` states.

    Args:
        config: the model's text configuration.
        tokens: states read.
    """
    return 2.0 * tokens * config.hidden_size * config.vocab_size


def vision_flops(config: Any, frames: int, height: int, width: int) -> float:
    """The vision tower over ``frames`` temporal patches of height x width patches.

    Args:
        config: the model's vision configuration.
        frames: temporal patches; attention stays within each.
        height: patches.
        width: patches.
    """
    d, patches = config.hidden_size, frames * height * width
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    merged = d * config.spatial_merge_size**2
    blocks = config.depth * (
        2 * patches * (4 * d * d + 2 * d * config.intermediate_size)
        + 4 * d * frames * (height * width) ** 2
    )
    mergers = 1 + len(config.deepstack_visual_indexes)
    tokens = patches / config.spatial_merge_size**2
    merging = mergers * 2 * tokens * merged * (merged + config.out_hidden_size)
    return 2 * patches * patch * d + blocks + merging


def vision_transformer_flops(config: Any, images: int, patches: int, *, tokens: int) -> float:
    """A plain vision transformer over ``images`` of as many patches, without what comes behind it.

    Args:
        config: the model's vision configuration.
        images: how many; attention stays within each.
        patches: of one image.
        tokens: of one image, in the tower: its patches, and a token of its class if there is one.
    """
    d = config.hidden_size
    side = config.patch_size
    area = side[0] * side[1] if isinstance(side, list | tuple) else side**2
    embedding = 2 * patches * config.num_channels * area * d
    linear = 2 * tokens * (4 * d * d + 2 * d * config.intermediate_size)
    return images * (embedding + config.num_hidden_layers * (linear + 4 * d * tokens**2))


def projector_flops(widths: Sequence[int], tokens: int) -> float:
    """Linear layers one after the other, from the first of the widths to the last."""
    return 2.0 * tokens * sum(a * b for a, b in pairwise(widths))


def convolving_flops(config: Any, new: int, past: int) -> float:
    """LFM2's blocks over ``new`` tokens: attention in some, a gated short convolution in the others.

    Args:
        config: the model's text configuration.
        new: tokens run.
        past: tokens already in the cache.
    """
    queries, keys, width = _widths(config)
    wide = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        wide = int((config.block_ffn_dim_multiplier or 1) * int(2 * wide / 3))
        wide = config.block_multiple_of * math.ceil(wide / config.block_multiple_of)
    attention = config.layer_types.count("full_attention")
    convolution = config.num_hidden_layers - attention
    linear = attention * width * (2 * queries + 2 * keys)
    linear += convolution * width * (4 * width + config.conv_L_cache)
    linear += config.num_hidden_layers * 3 * width * wide
    seen = new * past + new * (new + 1) / 2
    return 2.0 * linear * new + attention * 4 * queries * seen


ATTENTION_BACKWARD = 2.5
"""Attention's backward pass, in forward passes: four products, and the scores computed once more, as fused
kernels do, which do not keep them."""


def adapter_flops(weights: int, tokens: int) -> float:
    """Forward through a LoRA adapter: each of its weights multiplies and adds once a token.

    Args:
        weights: of both matrices of all layers that it adapts.
        tokens: run.
    """
    return 2.0 * weights * tokens


def lora_flops(config: Any, new: int, rank: int) -> float:
    """Forward through LoRA's two matrices on each of the language model's seven linear layers a block.

    Args:
        config: the model's text configuration.
        new: tokens run.
        rank: of the adapter.
    """
    return config.num_hidden_layers * 2.0 * new * rank * sum(_lora_sides(config))


def lora_parameters(config: Any, rank: int) -> int:
    """Weights of a LoRA adapter on the language model's linear layers.

    Args:
        config: the model's text configuration.
        rank: of the adapter.
    """
    return int(config.num_hidden_layers * rank * sum(_lora_sides(config)))


def language_training_flops(
    config: Any, new: int, past: int, rank: int | None = None, *, read: bool = True
) -> float:
    """Forward and backward through the language model's blocks over ``new`` tokens.

    Where all weights are trained, every matrix product is followed by two of its size: the gradients of
    its input and of its weights, so linear layers cost three times the forward pass. Under LoRA the frozen
    weights' gradients fall away, twice the forward pass, and the adapter's own products cost three times
    theirs. Nothing below the first block is trained then, so its query, key and value projections give
    their input no gradient.

    Args:
        config: the model's text configuration.
        new: tokens run.
        past: tokens already in the cache, whose keys and values get gradients as well.
        rank: of LoRA on every linear layer; None trains all weights.
        read: False for a shared prefix of which only the cache is read: in the last block nothing but
            keys and values then gets a gradient.
    """
    queries, keys, width = _widths(config)
    seen = new * past + new * (new + 1) / 2
    qkv = width * (queries + 2 * keys)
    linear = qkv + queries * width + 3 * width * config.intermediate_size
    attention = ATTENTION_BACKWARD * 4 * queries * seen
    layers = config.num_hidden_layers
    through = layers if read else layers - 1
    cached = 0 if read else 2 * width * keys
    inputs = 2.0 * new * (through * linear + cached)
    forward = language_flops(config, new, past)
    if rank is None:
        return forward + 2 * inputs + through * attention
    sides = sum(_lora_sides(config))
    cached_sides = 0 if read else 2 * (width + keys)
    own = 2.0 * new * rank * (through * sides + cached_sides)
    unneeded = 2.0 * new * (qkv + rank * 3 * width)
    return (
        forward + lora_flops(config, new, rank) + inputs + 2 * own - unneeded + through * attention
    )


def head_training_flops(config: Any, tokens: int, *, trained: bool) -> float:
    """The vocabulary's logits and their gradients.

    Args:
        config: the model's text configuration.
        tokens: states read.
        trained: whether the head's weights get gradients; they do not under LoRA.
    """
    return head_flops(config, tokens) * (3 if trained else 2)


def vision_training_flops(config: Any, frames: int, height: int, width: int) -> float:
    """Forward and backward through the vision tower; its pixels need no gradient.

    Args:
        config: the model's vision configuration.
        frames: temporal patches.
        height: patches.
        width: patches.
    """
    patches = frames * height * width
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    attention = config.depth * 4 * config.hidden_size * frames * (height * width) ** 2
    forward = vision_flops(config, frames, height, width)
    embedding = 2 * patches * patch * config.hidden_size
    return 3 * forward - embedding + (ATTENTION_BACKWARD - 2) * attention


def _widths(config: Any) -> tuple[int, int, int]:
    """Widths of all queries, of all keys, and of the hidden states."""
    side = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * side, config.num_key_value_heads * side, config.hidden_size


def _lora_sides(config: Any) -> tuple[int, ...]:
    """Input and output width together of q, k, v, o, gate, up and down."""
    queries, keys, width = _widths(config)
    wide = width + config.intermediate_size
    return (width + queries, width + keys, width + keys, queries + width, wide, wide, wide)
