"""What a forward pass costs, by formula: floating-point operations of Qwen3-VL-like models.

Counts multiplications and additions of matrix products and attention; norms, activations and rotary
embeddings are left out. Attention counts what is seen: the causal triangle and the past.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Spent:
    """What one sequence has cost so far.

    Attributes:
        prompt: tokens read.
        generated: tokens written.
        flops: floating-point operations.
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
    width = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
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
