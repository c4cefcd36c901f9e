"""Families of vision-language models, a file each, and how a model's family is found."""

from __future__ import annotations

from typing import Any

from safelens.families.base import Family
from safelens.families.internvl import InternVl
from safelens.families.lfm2_vl import Lfm2Vl
from safelens.families.qwen3_vl import Qwen3Vl
from safelens.vlm_loading import ModelLoadError

__all__ = ["KNOWN", "Family", "family_of"]

KNOWN = "Qwen3-VL, InternVL (-hf) or LFM2-VL"
"""The families that there are, in words."""

_IMAGES: dict[str, type[Family]] = {"internvl": InternVl, "lfm2_vl": Lfm2Vl}


def family_of(model: Any, processor: Any) -> Family:
    """The family of a model.

    Raises:
        ModelLoadError: it is of no family that is known, or its cache could not be cut by token.
    """
    kind = model.config.model_type
    name = f"{type(model).__name__} (model type {kind!r})"
    qwen = hasattr(model, "model") and hasattr(model.model, "get_rope_index")
    if kind not in _IMAGES and not qwen:
        raise ModelLoadError(f"{name} is of no family that can be run; use a model of {KNOWN}")
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if others := layers - {"full_attention", "conv"}:
        raise ModelLoadError(
            f"{name} has layers of type {', '.join(sorted(others))}, whose cache cannot be cut by "
            f"token; use a model of {KNOWN}"
        )
    return _IMAGES.get(kind, Qwen3Vl)(model, processor)
