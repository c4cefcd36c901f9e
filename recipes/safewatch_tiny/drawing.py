"""Stage: draws clips as the embedder sees them; the captioner, which needs larger frames, is not trained here.

Knows nothing of what is learned from them.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from recipes.tiny.data import draw_one, shrink


def draw(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Draw ``settings["clips"]`` clips of the world that begins with ``settings["seed"]``."""
    seed, clips = settings["seed"], settings["clips"]
    small, rows, offset = [], [], 0
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("forkserver")) as pool:
        done = pool.map(_small, ((seed, i) for i in range(clips)), chunksize=32)
        for frames, row in track(done, total=clips, description=f"drawing {clips} clips"):
            small.append(frames)
            rows.append(row | {"offset": offset})
            offset += len(frames)
    np.save(out / "small.npy", np.concatenate(small))
    (out / "clips.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def _small(job: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    frames, row = draw_one(job)
    return shrink(frames), row
