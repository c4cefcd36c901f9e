"""Attention of a few new tokens on a long cache whose keys serve several query heads each.

Knows how heads are grouped. The library copies keys and values once for every query head of a group, for each
layer in each pass; with a few new tokens that costs many times the attention itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import PreTrainedModel

_NAME = "safelens_grouped"
_FEW = 64
"""Most new tokens for which copies cost more than a mask that is longer by the group."""


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """The library's scaled dot-product attention, with a group's queries laid one behind the other.

    All queries of a group then meet their keys as queries of one head, and nothing is copied.

    Args:
        module: the layer.
        query: (B, H, L, D).
        key: (B, K, S, D), H a multiple of K.
        value: as the keys.
        attention_mask: what is added to the products, or which are taken, (B or 1, 1, L, S).
        dropout: share of weights that are dropped.
        scaling: of the products.
        more: for the library's own, which runs where queries are many or there is no mask.

    Returns:
        Shape (B, L, H, D), and no weights, as the library wants it.
    """
    rows, heads, new, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None or new > _FEW or groups == 1 or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    found = F.scaled_dot_product_attention(
        query.reshape(rows, key.shape[1], groups * new, width),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    return found.view(rows, heads, new, value.shape[-1]).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, grouped_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def group_heads(model: PreTrainedModel) -> None:
    """Let a model's language layers attend by :func:`grouped_attention`, if they use the library's otherwise."""
    text = model.config.get_text_config()
    if text._attn_implementation == "sdpa":
        for part in model.modules():
            if isinstance(part, PreTrainedModel) and part.config is text:
                part.set_attn_implementation(_NAME)
