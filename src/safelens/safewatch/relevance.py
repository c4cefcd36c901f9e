"""Policy-Aware Adaptive Pruning: how relevant each video token is to each category, and which stay.

Knows queries, keys and ranks (SafeWatch, section 3.3). Knows nothing of caches, policies or pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from safelens.families import Family


def relevance(
    family: Family, layer: int, queries: Sequence[torch.Tensor], start: int, keys: torch.Tensor
) -> torch.Tensor:
    """How much each category looks at each video token: r = mean over heads and its tokens of softmax(q k^T / sqrt(d)).

    The softmax goes over the video's tokens alone, so a category's relevances sum to 1. A category that was
    read before the video has never seen it; its queries are rotated as if it stood behind the video, all
    categories from the same position on, so that no distance is one that the model does not know.

    Args:
        family: rotates queries as the model does.
        layer: whose queries and keys they are.
        queries: of each category, not rotated, shape (heads, tokens, head size).
        start: rotary position of each category's first token.
        keys: of the video's N tokens, shape (key heads, N, head size).

    Returns:
        Shape (categories, N), in float32.
    """
    scale = family.attention(layer).scaling
    found = []
    for one in queries:
        rotated = family.rotated(one[None], start)[0]
        grouped = rotated.unflatten(0, (keys.shape[0], -1)).float()
        scores = torch.einsum("kgtd,knd->kgtn", grouped, keys.float()) * scale
        found.append(scores.softmax(-1).mean(dim=(0, 1, 2)))
    return torch.stack(found)


def most_relevant(found: torch.Tensor, keep: float) -> torch.Tensor:
    """Which tokens stay: the union of each category's first k, with k as large as the share allows.

    So the cost does not grow with the number of categories, and each has an equal say: they name their most
    relevant tokens in turn until the share is full; among tokens of one rank the more relevant go first.

    Args:
        found: of N tokens to each category, shape (categories, N).
        keep: share of the tokens, above 0 and at most 1, rounded up.

    Returns:
        bool (N,).
    """
    count = math.ceil(round(keep * found.shape[1], 6))
    ranks = found.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    by_relevance = found.amax(0).argsort(descending=True, stable=True)
    order = by_relevance[ranks.amin(0)[by_relevance].argsort(stable=True)]
    kept = torch.zeros(found.shape[1], dtype=torch.bool, device=found.device)
    kept[order[:count]] = True
    return kept


def relevance_flops(queries: Sequence[torch.Tensor], tokens: int) -> float:
    """Floating-point operations of :func:`relevance` over as many video tokens."""
    return sum(2.0 * one.numel() * tokens for one in queries)
