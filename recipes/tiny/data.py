"""Draw SafeWorld clips once, as the arrays that all parts of the tiny bundle are trained on.

    python -m recipes.tiny.data OUT --clips N --seed S

Writes frames at the sampling rule's times: ``small.npy`` at the embedder's resolution, ``large.npy``
at the captioner's, ``clips.jsonl`` with texts and truth. Frames are drawn, not decoded from video;
JPEG noise of random strength stands in for the codec's (the figures in the card are measured on
decoded H.264).
"""

from __future__ import annotations

import argparse
import io
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from safelens.safeworld import sample_scene
from safelens.video import ClipOptions, sample_times
from safelens.vlm_inputs import fit_frames

LARGE, SMALL = 128, 48
SEED = 20261121


@dataclass(frozen=True)
class DrawnClips:
    """Arrays of one drawn set: frames of clip i are rows [offset, offset + n)."""

    small: np.ndarray
    large: np.ndarray
    clips: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> DrawnClips:
        """Memory-map what :func:`draw` wrote."""
        lines = (folder / "clips.jsonl").read_text().splitlines()
        return cls(
            np.load(folder / "small.npy", mmap_mode="r"),
            np.load(folder / "large.npy", mmap_mode="r"),
            [json.loads(line) for line in lines],
        )

    def frames(self, i: int) -> np.ndarray:
        """Frames of clip i at the embedder's resolution, (T, 48, 48, 3) uint8."""
        clip = self.clips[i]
        return np.asarray(self.small[clip["offset"] : clip["offset"] + len(clip["times"])])


def times_of(duration_s: float, fps: int) -> np.ndarray:
    """The sampling rule's times for a drawn clip, whose last frame begins 1/fps before its end."""
    return sample_times(duration_s - 1 / fps, ClipOptions())


def noisy(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A frame after JPEG at a random quality."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=int(rng.integers(55, 96)))
    return np.asarray(Image.open(buffer))


def draw_one(job: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames (T, 128, 128, 3) and the texts of one clip."""
    seed, index = job
    scene = sample_scene(seed, index)
    rng = np.random.default_rng((seed, index, 7))
    times = times_of(scene.duration_s, scene.fps)
    frames = np.stack([noisy(scene.render(float(t), LARGE), rng) for t in times])
    truth = scene.truth
    return frames, {
        "index": index,
        "times": [round(float(t), 3) for t in times],
        "captions": [scene.caption(float(t)) for t in times],
        "objects": [list(scene.objects(float(t))) for t in times],
        "labels": list(truth.labels),
        "scenario": truth.scenario,
        "twin": truth.twin,
        "difficulty": truth.difficulty,
        "interval": truth.interval,
        "description": truth.description,
        "explanation": truth.explanation,
    }


def shrink(frames: np.ndarray) -> np.ndarray:
    """Frames as the embedder sees them: resized as `encode_videos` would, (T, 48, 48, 3)."""
    return fit_frames(frames, SMALL * SMALL, SMALL).permute(0, 2, 3, 1).numpy()


def draw(out: Path, clips: int, seed: int, jobs: int) -> None:
    """Draw ``clips`` clips into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / "clips.jsonl").exists():
        print(f"{out}: already drawn")
        return
    large, small, rows, offset = [], [], [], 0
    with ProcessPoolExecutor(jobs, mp_context=get_context("forkserver")) as pool:
        done = pool.map(draw_one, ((seed, i) for i in range(clips)), chunksize=32)
        for frames, row in track(done, total=clips, description=f"drawing {out.name}"):
            large.append(frames)
            small.append(shrink(frames))
            rows.append(row | {"offset": offset})
            offset += len(frames)
    np.save(out / "large.npy", np.concatenate(large))
    np.save(out / "small.npy", np.concatenate(small))
    (out / "clips.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    draw(args.out, args.clips, args.seed, args.jobs)
