"""Runs a recipe's stages once each: a stage's folder is named by a digest of all it depends on.

Knows stages, folders and digests. Knows nothing of what a stage does.

The digest covers the stage's name, its settings, the source of its function and the digests of the stages
it needs; library code that the function calls is not covered: after changing that, remove the folder.
A stage that was interrupted finds its own folder as it left it; one that is finished is not run again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

DONE = "stage.json"


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: Begins the folder's name.
        work: Called with the stage's folder, its settings and the folders of what it needs by name;
            leaves its results in its own folder and goes on from what an interrupted call left there.
        settings: What JSON holds: numbers, seeds, model ids, digests of input files.
        needs: Stages whose results it reads.
    """

    name: str
    work: Callable[[Path, dict[str, Any], dict[str, Path]], None]
    settings: dict[str, Any] = field(default_factory=dict)
    needs: tuple[Stage, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal."""
        about = {
            "name": self.name,
            "settings": self.settings,
            "source": inspect.getsource(self.work),
            "needs": [stage.digest for stage in self.needs],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        """Where its results are."""
        return root / f"{self.name}-{self.digest[:12]}"

    def done(self, root: Path) -> bool:
        """Whether it has finished."""
        return (self.folder(root) / DONE).exists()


def in_order(*goals: Stage) -> Iterator[Stage]:
    """The goals and all that they need, each once, after what it needs."""
    seen: set[str] = set()

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.digest not in seen:
            seen.add(stage.digest)
            for need in stage.needs:
                yield from visit(need)
            yield stage

    for goal in goals:
        yield from visit(goal)


def run(*goals: Stage, root: Path) -> list[Path]:
    """Run what is missing and return the goals' folders.

    Raises:
        Exception: Whatever a stage raises; finished stages stay, and the next call goes on.
    """
    stages = list(in_order(*goals))
    for number, stage in enumerate(stages, 1):
        folder = stage.folder(root)
        title = f"[{number}/{len(stages)}] {folder.name}"
        if stage.done(root):
            print(f"{title}: done before", flush=True)
            continue
        print(title, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        stage.work(folder, stage.settings, {n.name: n.folder(root) for n in stage.needs})
        about = {
            "name": stage.name,
            "settings": stage.settings,
            "needs": {need.name: need.digest for need in stage.needs},
            "digest": stage.digest,
            "seconds_of_last_call": round(time.monotonic() - began, 1),
        }
        partial = folder / f"{DONE}.partial"
        partial.write_text(json.dumps(about, indent=1) + "\n")
        os.replace(partial, folder / DONE)
    return [goal.folder(root) for goal in goals]
