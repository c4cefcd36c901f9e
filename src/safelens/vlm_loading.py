"""Finding a model's files, and one error for the many ways in which loading it can fail.

Knows directories, the model hub and its manners. Knows nothing of what is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any


class ModelLoadError(Exception):
    """A model could not be loaded; the message names it, the cause and what to do."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, which clutter a command line's own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def loading(source: str | Path) -> Iterator[tuple[str, bool]]:
    """Find where to load from, and turn the many ways in which loading fails into one error.

    Args:
        source: a directory or a hub id.

    Yields:
        The name to load, and whether only local files may be used.

    Raises:
        ModelLoadError: in place of the library's own error; it says what to do.
    """
    name = str(source)
    local = Path(name).expanduser().is_dir()
    hub_error: Exception | None = None
    if local:
        name = str(Path(name).expanduser())
    elif not Path(name).is_absolute() and not name.startswith((".", "~")):
        hub_error = _hub_error(name)
    try:
        with quiet():
            yield name, local or hub_error is not None
    except ModelLoadError:
        raise
    except Exception as error:
        cause = hub_error or error
        if local:
            advice = "the directory is incomplete, damaged or holds a model of another kind"
        else:
            advice = (
                "it is no local directory and the model hub could not serve it; give the directory "
                "of a downloaded model, check the name and the network, or use the embedded bundle "
                "(--bundle tiny)"
            )
        first = next(iter(str(cause).strip().splitlines()), "")
        raise ModelLoadError(
            f"cannot load {source}: {advice} [{type(cause).__name__}: {first}]"
        ) from error


def files_digest(source: str | Path) -> str:
    """SHA-256 of the files that a model is made of, alike for a directory and for the hub's copy of it.

    Args:
        source: a directory, or the hub id of a model that has been loaded, so that it is cached.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(source), local_files_only=True))
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model"):
            with file.open("rb") as opened:
                digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _hub_error(name: str) -> Exception | None:
    """Why the hub cannot serve a model; asked first, since loaders repeat hopeless requests."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:
        return error
    return None


def check_weights(source: str | Path, missing: Collection[str]) -> None:
    """Refuse a model whose files lack weights: they would be random, and the model would run.

    Raises:
        ModelLoadError: says how many, and names one.
    """
    if missing:
        raise ModelLoadError(
            f"cannot load {source}: it lacks {len(missing)} weights, such as {min(missing)}; "
            "download it again"
        )


def adapter_weights(name: str, local_only: bool) -> Path:
    """The weights file of an adapter, fetched from the hub where it is no directory.

    Raises:
        FileNotFoundError: there is none.
    """
    if not Path(name).is_dir():
        from huggingface_hub import snapshot_download

        name = snapshot_download(name, local_files_only=local_only)
    weights = Path(name) / "adapter_model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; expected an adapter saved by peft")
    return weights


def check_adapter(
    source: str | Path, weights: Path, name: str, parameters: Mapping[str, Any]
) -> None:
    """Compare a loaded adapter with its file; what does not fit is only logged by the library.

    Args:
        source: as it was asked for.
        weights: the adapter's file.
        name: the adapter's name in the model.
        parameters: the model's, by name.

    Raises:
        ModelLoadError: weights of one have no place in the other, or the head is adapted.
    """
    from safetensors import safe_open

    with safe_open(str(weights), framework="pt") as file:
        stored = {key.removeprefix("base_model.model.") for key in file.keys()}  # noqa: SIM118
    loaded = {key.replace(f".{name}.", ".") for key in parameters if f".{name}." in key}
    if any(key.startswith("lm_head.") for key in stored | loaded):
        raise ModelLoadError(
            f"cannot load {source}: it adapts lm_head; expected an adapter of the language model's "
            "layers only"
        )
    if odd := stored ^ loaded:
        raise ModelLoadError(
            f"cannot load {source}: {len(odd)} of its weights do not match the model's layers, such "
            f"as {min(odd)}; it was made for another model"
        )


def lora_weights(name: str, parameters: Mapping[str, Any]) -> int:
    """How many weights a LoRA adapter has on the language model, where alone it is ever on.

    Args:
        name: the adapter's name in the model.
        parameters: the model's, by name.
    """
    return sum(
        weight.numel()
        for key, weight in parameters.items()
        if "language_model" in key and "lora_" in key and f".{name}." in key
    )
