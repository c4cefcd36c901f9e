"""PyTorch's counter of operations, which counts attention on CPUs from 2.15 on: before, by its own formulas."""

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def _forward(query, key, value, *args, out_shape=None, **more):
    return sdpa_flop_count(query, key, value)


def _backward(grad, query, key, value, *args, out_shape=None, **more):
    return sdpa_backward_flop_count(grad, query, key, value)


_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def flop_counter():
    """A counter that counts attention wherever it runs."""
    missing = {op: formula for op, formula in _FORMULAS.items() if op not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=missing)
