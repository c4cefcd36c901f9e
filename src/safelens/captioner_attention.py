"""Florence-2's channel attention as products of matrices.

Knows the vision tower's groups of channels. There every channel is a token as wide as the picture has places, which
the library's scaled dot-product attention has no kernel for: it copies queries, keys and values, and more than once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention

_NAME = "safelens_channels"


def channel_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention between the channels of each group; in other layers the library's own.

    Args:
        module: the layer.
        query: (B, G, C, N), channels of a group and the picture's places; any strides.
        key: as the queries.
        value: as the queries.
        attention_mask: none between channels.
        scaling: of the products.
        more: for the library's own.

    Returns:
        Shape (B, C, G, N), and no weights, as the library wants it.
    """
    if not isinstance(module, Florence2VisionChannelAttention) or attention_mask is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = []
    # Picture by picture, since only then are queries, keys and values matrices where they lie.
    for q, k, v in zip(query, key, value, strict=True):
        weights = (torch.bmm(q, k.mT).float() * scaling).softmax(-1).to(v.dtype)
        found.append(torch.bmm(v.mT, weights.mT))
    return torch.stack(found).permute(0, 3, 1, 2), None


AttentionInterface.register(_NAME, channel_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def attend_channels(model: Any) -> None:
    """Let the vision tower of a Florence-2 attend by :func:`channel_attention`, if it uses the library's otherwise."""
    tower = model.model.vision_tower
    if tower.config._attn_implementation == "sdpa":
        tower.set_attn_implementation(_NAME)
