"""A vision tower's first layer as a product of matrices.

Knows convolutions whose kernel is the whole picture that they are given, as that of Qwen3-VL's patches is. Libraries'
kernels are made for pictures that a kernel moves over, and take many times as long.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PatchProduct(nn.Conv3d):
    """A convolution of patches of its kernel's size; one weight, one name, the same numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (N, channels, *kernel) to (N, out, 1, 1, 1); other shapes are the convolution's own."""
        if x.shape[2:] != self.kernel_size:
            return super().forward(x)
        found = F.linear(x.flatten(1), self.weight.flatten(1), self.bias)
        return found[:, :, None, None, None]


def multiply_patches(model: nn.Module) -> None:
    """Let a model's convolutions of patches be :class:`PatchProduct`."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.groups == 1 and not any(module.padding):
            module.__class__ = PatchProduct


def convolve_patches(model: nn.Module) -> None:
    """Undo :func:`multiply_patches`."""
    for module in model.modules():
        if isinstance(module, PatchProduct):
            module.__class__ = nn.Conv3d  # type: ignore[assignment]
