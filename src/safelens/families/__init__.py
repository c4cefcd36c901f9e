"""Families of vision-language models, a file each, and how a model's family is found."""

from __future__ import annotations

from typing import Any

from safelens.families.base import Family
from safelens.families.internvl import InternVl
from safelens.families.lfm2_vl import Lfm2Vl
from safelens.families.qwen3_vl import Qwen3Vl
from safelens.vlm_loading import ModelLoadError

__all__ = ["Family", "family_of", "refusal"]

_FAMILIES: dict[str, type[Family]] = {
    "qwen3_vl": Qwen3Vl,
    "qwen3_vl_moe": Qwen3Vl,
    "internvl": InternVl,
    "lfm2_vl": Lfm2Vl,
}
_ADVICE = "use a Qwen3-VL, an InternVL (-hf) or an LFM2-VL"


def refusal(config: Any) -> str | None:
    """Why models of a configuration cannot be run, and what to use; None where they can."""
    kind = f"model type {config.model_type!r}"
    if not hasattr(config, "vision_config"):
        return f"{kind} has no vision tower; {_ADVICE}"
    if config.model_type not in _FAMILIES:
        return f"{kind} is of no family that can be run; {_ADVICE}"
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if others := layers - {"full_attention", "conv"}:
        names = ", ".join(sorted(others))
        return f"{kind} has layers of type {names}, whose cache cannot be cut by token; {_ADVICE}"
    return None


def family_of(model: Any, processor: Any) -> Family:
    """The family of a model.

    Raises:
        ModelLoadError: it is of no family that is known, or its cache could not be cut by token.
    """
    if reason := refusal(model.config):
        raise ModelLoadError(f"{type(model).__name__}: {reason}")
    return _FAMILIES[model.config.model_type](model, processor)
