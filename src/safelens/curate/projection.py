"""Random projection of per-sample gradients, without ever forming them.

Knows linear algebra. Knows nothing of models or samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from safelens.curate.gradients import SampleGradients


class FactoredProjection:
    """Gradients of linear layers to a few numbers that keep their dot products, nearly.

    A layer's gradient is G = sum_t g_t x_t^T. With Gaussian matrices P (out, r) and Q (in, r) it is
    projected to P^T G Q = sum_t (P^T g_t)(Q^T x_t)^T, r^2 numbers, at the cost of projecting the tokens
    (LoGra, arXiv 2405.13954). Scaled so that the expected dot product is that of the gradients.

    Args:
        layers: The layers, as `GradientCollector.layers` has them.
        rank: r.
        seed: Of the matrices; the same seed gives the same projection on every machine.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], rank: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)

        def gaussian(rows: int, device: torch.device) -> Tensor:
            drawn = torch.randn(rows, rank, generator=random, dtype=torch.float64)
            return (drawn / rank**0.5).float().to(device)

        self._sides = [
            (
                gaussian(layer.out_features, layer.weight.device),
                gaussian(layer.in_features, layer.weight.device),
            )
            for layer in layers.values()
        ]
        self.dimension = len(self._sides) * rank**2
        """Numbers k in one projected gradient."""

    def __call__(self, gradients: SampleGradients) -> Tensor:
        """Projected gradients, shape (B, k), in float32."""
        parts = [
            torch.einsum("bto,bti->boi", g @ left, x @ right).flatten(1)
            for g, x, (left, right) in zip(
                gradients.output_gradients, gradients.inputs, self._sides, strict=True
            )
        ]
        return torch.cat(parts, dim=1)
