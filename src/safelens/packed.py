"""Linear layers whose weights lie as the CPU's kernels read them.

Knows oneDNN's packed weights, which are for use alone: no gradient goes through them. A weight as PyTorch keeps it is
laid out anew in each product. That costs most where tokens are few, as in S2's passes and captions, and more in
float32, the CPU's default, than in bfloat16. A GELU behind a product is part of it then: by itself it reads and writes
all that the product gives once more, and in bfloat16 took a sixth of the time of screening.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula
from transformers.activations import GELUActivation, GELUTanh

_OPS: Any = torch.ops.mkldnn
LEAST = 2**16
"""Numbers of a weight from which packing pays."""
_GELUS: dict[type[nn.Module], str] = {GELUActivation: "none", GELUTanh: "tanh"}
"""The library's activations that a product can end with, and what oneDNN calls their form."""
_BEHIND = (("linear_fc1", "act_fn"), ("fc1", "activation_fn"))
"""Names of layers, and of what a model does with nothing but their results."""


class PackedLinear(nn.Module):
    """A linear layer with a packed weight, and nothing of the layer that it is made of but its bias.

    Args:
        linear: on a CPU, in float32 or bfloat16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = _OPS._reorder_linear_weight(linear.weight.detach(), None)
        self._then, self._form = "none", ""
        self.training = linear.training

    def end_with_gelu(self, form: str) -> None:
        """Let results be those of a GELU behind the product, by its form "none" (exact) or "tanh"."""
        self._then, self._form = "gelu", form

    @property
    def weight(self) -> torch.Tensor:
        """The weight as it was, (out, in); a copy."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense

    @property
    def nbytes(self) -> int:
        """Of the weight."""
        return self.in_features * self.out_features * int(self._packed.element_size())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (..., in) to (..., out)."""
        found: torch.Tensor = _OPS._linear_pointwise(
            x, self._packed, self.bias, self._then, [], self._form
        )
        return found

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        """As a linear layer's."""
        then = "" if self._then == "none" else f", then {self._then}"
        return f"in_features={self.in_features}, out_features={self.out_features}, packed{then}"


class Passed(nn.Module):
    """In the place of an activation that the layer before it ends with.

    Args:
        activation: what it stands for.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What it is given."""
        return x


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _flops(
    x: torch.Size, weight: torch.Size, *args: Any, out_shape: torch.Size, **more: Any
) -> int:
    return 2 * x.numel() * weight[0]


def pack(model: nn.Module, least: int = LEAST) -> None:
    """Put packed layers in the place of a model's linear layers, where the machine and their type allow it.

    Adapters' layers stay, and weights that something else holds too, such as a head that is the embedding.

    Args:
        model: is changed.
        least: numbers of a weight that is packed.
    """
    held: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            if weight is not None:
                held[id(weight)] = held.get(id(weight), 0) + 1
    # By name: a list of the layers would hold all their weights a second time.
    places = [
        (module, child)
        for name, module in model.named_modules()
        for child, linear in module.named_children()
        if type(linear) is nn.Linear
        and "lora_" not in f"{name}.{child}"
        and linear.weight.numel() >= least
        and held[id(linear.weight)] == 1
        and _can_pack(linear.weight)
    ]
    for module, child in places:
        setattr(module, child, PackedLinear(getattr(module, child)))
    for module in list(model.modules()):
        for layer, activation in _BEHIND:
            packed: Any = getattr(module, layer, None)
            then: Any = getattr(module, activation, None)
            if isinstance(packed, PackedLinear) and type(then) in _GELUS:
                packed.end_with_gelu(_GELUS[type(then)])
                setattr(module, activation, Passed(then))


def unpack(model: nn.Module) -> None:
    """Undo :func:`pack`."""
    places = [
        (module, child)
        for module in model.modules()
        for child, packed in module.named_children()
        if isinstance(packed, PackedLinear)
    ]
    for module, child in places:
        setattr(module, child, _plain(getattr(module, child)))
    for module in list(model.modules()):
        for child, passed in module.named_children():
            if isinstance(passed, Passed):
                setattr(module, child, passed.activation)


def _plain(packed: PackedLinear) -> nn.Linear:
    linear = nn.Linear(packed.in_features, packed.out_features, device="meta")
    linear.weight = nn.Parameter(packed.weight)
    linear.bias = packed.bias
    return linear.train(packed.training)


def weight_bytes(model: nn.Module) -> int:
    """What a pass reads if it reads every weight of a model once."""
    plain = sum(p.numel() * p.element_size() for p in model.parameters())
    return plain + sum(m.nbytes for m in model.modules() if isinstance(m, PackedLinear))


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(_OPS._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
