"""Trained stages that are kept beside the recipe, so that what took hours need not be trained again.

Knows folders of stages and weights. Knows nothing of how they are trained.

A file is named as its stage's folder, by a digest of all that the stage depends on: whatever is changed in the
recipe, a stage that it concerns is trained anew. Weights are float16, half as large; the stage that trained them
rounds them too, so that a model is the same whether it was trained here or is taken from what is kept.

    python -m recipes.safewatch_tiny.kept --work out/watch      keeps the stages that have finished there
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from recipes.stages import DONE
from recipes.tiny.parts import load_vlm
from safelens.vlm import VisionLanguageModel

KEPT = Path(__file__).parent / "checkpoints"
_STAGES = ("questions", "guardrail", "pruning", "sequential", "shuffled")
_ADAPTER = "preference"


def round_weights(vlm: VisionLanguageModel) -> None:
    """To what float16 can hold."""
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            parameter.copy_(parameter.half())


def load_kept(vlm: VisionLanguageModel, name: str) -> bool:
    """Give a model the weights of a stage that is kept, if it is.

    Args:
        vlm: a model of the same shape.
        name: of the stage's folder.
    """
    file = KEPT / f"{name}.safetensors"
    if not file.exists():
        return False
    found = load_file(file)
    with torch.no_grad():
        for key, parameter in vlm.model.named_parameters():
            parameter.copy_(found.pop(key))
    if found:
        raise ValueError(f"{file}: weights that the model does not have: {sorted(found)}")
    return True


def copied_adapter(out: Path) -> bool:
    """Put the adapter of a stage where the stage leaves it, if it is kept."""
    folder = KEPT / out.name
    if folder.is_dir():
        shutil.copytree(folder, out / "adapter", dirs_exist_ok=True)
    return folder.is_dir()


def keep(work: Path) -> list[Path]:
    """Keep the stages that have finished in a folder; returns the files."""
    KEPT.mkdir(exist_ok=True)
    files = []
    for name in _STAGES:
        for folder in sorted(work.glob(f"{name}-*")):
            file = KEPT / f"{folder.name}.safetensors"
            if (folder / DONE).exists() and not file.exists():
                parameters = load_vlm(folder).model.named_parameters()
                save_file({key: p.detach().half().contiguous() for key, p in parameters}, file)
                files.append(file)
    for folder in sorted(work.glob(f"{_ADAPTER}-*")):
        if (folder / DONE).exists() and not (KEPT / folder.name).exists():
            shutil.copytree(folder / "adapter", KEPT / folder.name)
            files += sorted((KEPT / folder.name).glob("*.safetensors"))
    return files


def main() -> None:
    """Keep, and say what."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/watch"))
    for file in keep(parser.parse_args().work):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
