"""Blocks on disk, one file each, found by all that they depend on.

Knows files and tensors. Knows nothing of models, and not what the keys mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

_FORMAT = "safelens.block/1"

Layers = Sequence[Sequence[torch.Tensor]]
"""What each layer holds of one row."""


class BlockStore:
    """A folder of blocks; nothing is ever deleted, and deleting any of it is safe.

    Args:
        folder: is made when the first block is put; several processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self, key: Mapping[str, object], device: torch.device
    ) -> tuple[list[list[torch.Tensor]], torch.Tensor] | None:
        """Layers and queries of a block; None where it is not kept, or its file is damaged.

        Args:
            key: plain data.
            device: where to.
        """
        from safetensors import SafetensorError, safe_open

        text = _text(key)
        try:
            with safe_open(str(self._path(text)), framework="pt", device=str(device)) as file:
                if (file.metadata() or {}).get("key") != text:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        queries = tensors.pop("queries")
        layers: list[list[torch.Tensor]] = [[] for _ in {name.split(".")[0] for name in tensors}]
        for name in sorted(tensors, key=lambda name: [int(part) for part in name.split(".")]):
            layers[int(name.split(".")[0])].append(tensors[name])
        return layers, queries

    def put(self, key: Mapping[str, object], layers: Layers, queries: torch.Tensor) -> None:
        """Keep a block; it is there whole or not at all.

        Raises:
            OSError: the folder cannot be written.
        """
        from safetensors.torch import save

        tensors = {
            f"{i}.{j}": states.contiguous()
            for i, layer in enumerate(layers)
            for j, states in enumerate(layer)
        }
        text = _text(key)
        data = save(tensors | {"queries": queries.contiguous()}, metadata={"key": text})
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
            try:
                file.write(data)
                file.close()
                os.replace(file.name, self._path(text))
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def _path(self, text: str) -> Path:
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def _text(key: Mapping[str, object]) -> str:
    return json.dumps({"format": _FORMAT, **key}, sort_keys=True)
