"""What a device can do at best: the rate of matrix products, and of reading memory.

Knows how both are measured. Knows nothing of what they are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

_WIDE = (2048, 6144)
"""Of the matrix in products: that of a Qwen3-VL-2B's widest layer."""
_TOKENS = 512
_BYTES = 512 * 2**20
"""Read at a time, far more than caches hold."""


@dataclass(frozen=True)
class Limits:
    """The best of some tries, which other work on the machine can only make look worse.

    Attributes:
        flops: floating-point operations a second, in products of large matrices.
        bytes: read a second, in products of one vector with a matrix that no cache holds.
    """

    flops: float
    bytes: float


@torch.inference_mode()
def measure(dtype: torch.dtype, device: torch.device, *, tries: int = 5) -> Limits:
    """Measure a device with numbers of a type, by as many threads as torch has."""
    inner, outer = _WIDE
    weight = torch.randn(outer, inner, dtype=dtype, device=device)
    tokens = torch.randn(_TOKENS, inner, dtype=dtype, device=device)
    product = _best(lambda: F.linear(tokens, weight), device, tries)
    rows = _BYTES // (inner * weight.element_size())
    large = torch.randn(1, inner, dtype=dtype, device=device).expand(rows, inner).contiguous()
    reading = _best(lambda: F.linear(tokens[:1], large), device, tries)
    return Limits(
        flops=2.0 * _TOKENS * inner * outer / product,
        bytes=large.numel() * large.element_size() / reading,
    )


def _best(work: Callable[[], torch.Tensor], device: torch.device, tries: int) -> float:
    """Seconds of the fastest of some tries, after one that is not counted."""
    seconds = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
