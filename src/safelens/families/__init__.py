"""Families of vision-language models, a file each, and how a model's family is found."""

from __future__ import annotations

from typing import Any

from safelens.families.base import Family
from safelens.families.qwen3_vl import Qwen3Vl
from safelens.vlm_loading import ModelLoadError

__all__ = ["KNOWN", "Family", "family_of"]

KNOWN = "Qwen3-VL"
"""The families that there are, in words."""


def family_of(model: Any, processor: Any) -> Family:
    """The family of a model.

    Raises:
        ModelLoadError: it is of no family that is known, or its cache could not be cut by token.
    """
    name = f"{type(model).__name__} (model type {model.config.model_type!r})"
    if not hasattr(model, "model") or not hasattr(model.model, "get_rope_index"):
        raise ModelLoadError(f"{name} is of no family that can be run; use a model of {KNOWN}")
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if others := layers - {"full_attention"}:
        raise ModelLoadError(
            f"{name} has layers of type {', '.join(sorted(others))}, whose cache cannot be cut by "
            f"token; use a model of {KNOWN}"
        )
    return Qwen3Vl(model, processor)
