"""Muon with its products in float32, for processors without fast bfloat16.

Knows the update rule of `torch.optim.Muon` (same defaults, same steps). Does not know
which weights it is given; they must be matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by its nearest orthogonal matrix, nearly.

    `torch.optim.Muon` orthogonalizes one matrix at a time in bfloat16. On a CPU that only emulates
    bfloat16 that takes four times as long as float32, a third of a small model's step.

    Args:
        params: Two-dimensional weights.
        lr: Learning rate; scaled by sqrt(max(1, rows / columns)) for each weight.
        weight_decay: Decoupled weight decay.
        momentum: Of the running mean of gradients (Nesterov).

    Raises:
        ValueError: A weight that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim != 2:
                    raise ValueError(f"Muon is for matrices, got a weight of {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; returns what `closure` returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight.grad)
                mean = state["momentum"]
                mean.lerp_(weight.grad, 1 - group["momentum"])
                alike[tuple(weight.shape)].append(
                    (weight, weight.grad.lerp(mean, group["momentum"]))
                )
            for (rows, columns), pairs in alike.items():
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                updates = orthogonalized(torch.stack([update for _, update in pairs]).float())
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.to(weight.dtype), alpha=-rate)
        return result


def orthogonalized(matrices: Tensor, eps: float = 1e-7) -> Tensor:
    """Matrices with their singular values driven to about 1, shape (N, rows, columns).

    Five steps of the quintic Newton-Schulz iteration with Muon's coefficients, which leave singular
    values between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
