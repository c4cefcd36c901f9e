"""Stage: the model that the three stages begin with, which has learned to see, to caption and to read one policy.

It is the embedded bundle's. To train one from nothing would take hours more (`recipes.tiny`, to its stage "base").
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from safelens.bundle import Bundle


def embedded(part: str) -> Path:
    """A folder of the embedded bundle: "model" or "captioner"."""
    bundle = Bundle.load("tiny")
    return Path(bundle.path(part))


def digest() -> str:
    """SHA-256 of the embedded bundle's weights: stages that begin with others are other stages."""
    return hashlib.sha256((embedded("model") / "model.safetensors").read_bytes()).hexdigest()


def begin(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Copy it to where stages find a model.

    Raises:
        ValueError: the embedded bundle is not the one of ``settings["sha256"]``.
    """
    if digest() != settings["sha256"]:
        raise ValueError("the embedded bundle's model has changed since the stages were declared")
    shutil.copytree(embedded("model"), out / "model", dirs_exist_ok=True)
