"""Frames of SafeWorld with their captions, drawn once and kept on disk in shards.

Knows how to draw, store and shuffle (frame, caption) pairs. Does not know what is trained on them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class FrameSpec:
    """Which frames to draw; equal specs draw equal frames.

    Attributes:
        seed: SafeWorld's seed.
        scenes: How many scenes, numbered from 0.
        per_scene: Frames of each scene: one at a random time in each equal part of it.
        size: Side of a frame in pixels.
        shard: Scenes in one file.
    """

    seed: int
    scenes: int
    per_scene: int = 4
    size: int = 128
    shard: int = 250


class FrameSet:
    """Frames and captions in memory, from which any step's batch can be drawn again.

    Args:
        frames: uint8 RGB of shape (N, size, size, 3).
        captions: N captions.

    Raises:
        ValueError: Different numbers of frames and captions, or none.
    """

    def __init__(self, frames: np.ndarray, captions: Sequence[str]) -> None:
        if len(frames) != len(captions) or not len(frames):
            raise ValueError(
                f"{len(frames)} frames and {len(captions)} captions: expected the same number, above 0"
            )
        self.frames = frames
        self.captions = list(captions)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.captions)

    def batch(self, step: int, size: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
        """The batch of one step: every pass over the data is its own shuffle, no pair is left out.

        Args:
            step: Number of the step from 0.
            size: Pairs in the batch.
            seed: Seeds the shuffles.

        Returns:
            Frames of shape (size, H, W, 3) and their captions.
        """
        picked: list[int] = []
        position = step * size
        while len(picked) < size:
            epoch, offset = divmod(position, len(self))
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
            piece = order[offset : offset + size - len(picked)]
            picked.extend(int(i) for i in piece)
            position += len(piece)
        return self.frames[picked], [self.captions[i] for i in picked]


def load_frames(spec: FrameSpec, cache: str | Path, *, workers: int = 1) -> FrameSet:
    """Frames of `spec`; shards that are not in `cache` yet are drawn and put there.

    Args:
        spec: Which frames.
        cache: Directory shared by any specs; made when missing. Remove it when SafeWorld changes.
        workers: Processes that draw missing shards.

    Returns:
        All pairs, scene after scene.
    """
    folder = Path(cache) / f"seed{spec.seed}-{spec.per_scene}x{spec.size}px-{spec.shard}"
    folder.mkdir(parents=True, exist_ok=True)
    ranges = [
        (start, min(start + spec.shard, spec.scenes)) for start in range(0, spec.scenes, spec.shard)
    ]
    files = [folder / f"{start:06d}-{stop:06d}.npz" for start, stop in ranges]
    missing = [
        (spec, span, path) for span, path in zip(ranges, files, strict=True) if not path.exists()
    ]
    if workers > 1 and len(missing) > 1:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(_draw_shard, missing))
    else:
        for job in missing:
            _draw_shard(job)
    frames, captions = [], []
    for path in files:
        with np.load(path) as shard:
            frames.append(shard["frames"])
            captions.extend(json.loads(str(shard["captions"])))
    return FrameSet(np.concatenate(frames), captions)


def _draw_shard(job: tuple[FrameSpec, tuple[int, int], Path]) -> None:
    from safelens.safeworld import sample_scene

    spec, (start, stop), path = job
    frames, captions = [], []
    for index in range(start, stop):
        scene = sample_scene(spec.seed, index)
        rng = np.random.default_rng((spec.seed, index))
        for part in range(spec.per_scene):
            t = float(scene.duration_s * (part + rng.random()) / spec.per_scene)
            frames.append(scene.render(t, spec.size))
            captions.append(scene.caption(t))
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, frames=np.stack(frames), captions=np.array(json.dumps(captions)))
    partial.replace(path)
