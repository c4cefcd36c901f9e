"""S1's states on disk: what is screened once is never screened again, whatever interrupts.

Knows files, and that states depend on the video and on how it was screened. Knows nothing of models.

A folder holds `states.json` (how clips were screened) and one safetensors file for every few dozen of
them, which is written whole or not at all. Clips are known by their video's path, size and time of change:
labels are not kept, so relabelled, filtered and enlarged data sets find what they share, and a video that
was replaced is screened anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safelens.train.loop import TrainingError

SCHEMA = "safelens.states/2"
_CARD = "states.json"


@dataclass(frozen=True)
class Screened:
    """What is kept of some clips.

    Attributes:
        keys: Of the videos, as `video_key` gives them.
        sha256: Of the videos' bytes.
        question: Hidden states of the question's last tokens, shape (n, T, D), half precision.
        features: What the domain guard looks at, shape (n, F), float32.
    """

    keys: list[str]
    sha256: list[str]
    question: torch.Tensor
    features: torch.Tensor


class StateStore:
    """The folder of one way of screening.

    Args:
        folder: New, empty, or of the same `about`.
        about: All that states depend on beside the video: model, policy, layout, sizes.

    Raises:
        TrainingError: The folder holds something else, or cannot be read or written.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self._places: dict[str, tuple[Path, int]] = {}
        about = {"schema": SCHEMA} | about
        card = folder / _CARD
        try:
            if card.exists():
                found = json.loads(card.read_text("utf-8"))
                other = sorted(
                    k for k in about.keys() | found.keys() if found.get(k) != about.get(k)
                )
                if other:
                    raise TrainingError(
                        f"{folder} holds states that were made with another {', '.join(other)}: "
                        "name another folder, or remove this one"
                    )
            elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise TrainingError(f"{folder} holds no {_CARD} but something else: name another")
            else:
                folder.mkdir(parents=True, exist_ok=True)
                part = folder / f".{_CARD}.part"
                part.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
                os.replace(part, card)
            for file in sorted(folder.glob("*.safetensors")):
                self._places |= {
                    key: (file, row) for row, key in enumerate(_metadata(file)["keys"])
                }
        except (OSError, ValueError, AttributeError) as error:
            raise TrainingError(f"{folder}: cannot be read or written ({error})") from error

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, screened: Screened) -> None:
        """Keep some clips; they are on disk when this returns.

        Raises:
            TrainingError: The disk is full, or the folder cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = hashlib.sha256("\n".join(screened.keys).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.safetensors"
        part = self.folder / f".{name}.part"
        tensors = {
            "question": screened.question.contiguous(),
            "features": screened.features.contiguous(),
        }
        rows = {"keys": screened.keys, "sha256": screened.sha256}
        try:
            save_file(tensors, part, {"rows": json.dumps(rows)})
            os.replace(part, file)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise TrainingError(
                f"{file}: cannot be written ({error}). What is in {self.folder} is whole: make "
                "room, and give the same command again to go on"
            ) from error
        self._places |= {key: (file, row) for row, key in enumerate(screened.keys)}

    def read(self, keys: Sequence[str]) -> Screened:
        """What is kept of some clips, in the order asked for.

        Raises:
            TrainingError: A file cannot be read.
            KeyError: A clip is not there.
        """
        from safetensors import SafetensorError, safe_open

        wanted: dict[Path, list[tuple[int, int]]] = {}
        for number, key in enumerate(keys):
            file, row = self._places[key]
            wanted.setdefault(file, []).append((number, row))
        sha256 = [""] * len(keys)
        question = features = torch.empty(0)
        for file, pairs in wanted.items():
            try:
                with safe_open(file, "pt") as opened:
                    some, more = opened.get_tensor("question"), opened.get_tensor("features")
                digests = _metadata(file)["sha256"]
            except (OSError, SafetensorError) as error:
                raise TrainingError(f"{file}: cannot be read ({error}); remove it") from error
            if not len(question):  # allocated once: states of a large data set fill the memory
                question = torch.empty((len(keys), *some.shape[1:]), dtype=some.dtype)
                features = torch.empty((len(keys), *more.shape[1:]), dtype=more.dtype)
            numbers = [number for number, _ in pairs]
            rows = [row for _, row in pairs]
            question[numbers], features[numbers] = some[rows], more[rows]
            for number, row in pairs:
                sha256[number] = digests[row]
        return Screened(list(keys), sha256, question, features)


def video_key(path: str) -> str:
    """What a video's states are kept under: its path, and size and time of change where it is a file."""
    try:
        about = os.stat(path)
    except OSError:
        return path
    return f"{path}|{about.st_size}|{about.st_mtime_ns}"


def _metadata(file: Path) -> dict[str, list[str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            found: dict[str, list[str]] = json.loads(opened.metadata()["rows"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{file}: holds no states ({error}); remove it") from error
    return found
