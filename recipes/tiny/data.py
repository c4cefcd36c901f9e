"""Draws SafeWorld clips once, as the arrays and records that all parts of the tiny bundle learn from.

Writes frames at the sampling rule's times: ``small.npy`` at the embedder's resolution, ``large.npy``
at the captioner's, ``clips.jsonl`` with texts and truth. Frames are drawn, not decoded from video;
JPEG noise of random strength stands in for the codec's (the figures in the card are measured on
decoded H.264).

Knows scenes, arrays and records. Knows nothing of what is trained.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import track

from safelens.data.records import Record
from safelens.safeworld import sample_scene
from safelens.safeworld.noise import NoiseKind, noisy_labels
from safelens.verdict import Caption
from safelens.video import Clip, ClipOptions, sample_times
from safelens.vlm_inputs import fit_frames

LARGE, SMALL = 128, 48


@dataclass(frozen=True)
class DrawnClips:
    """Arrays of one drawn set: frames of clip i are rows [offset, offset + n); no large ones, if none were drawn."""

    small: np.ndarray
    large: np.ndarray | None
    clips: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> DrawnClips:
        """Memory-map what :func:`draw` wrote."""
        lines = (folder / "clips.jsonl").read_text().splitlines()
        large = folder / "large.npy"
        return cls(
            np.load(folder / "small.npy", mmap_mode="r"),
            np.load(large, mmap_mode="r") if large.exists() else None,
            [json.loads(line) for line in lines],
        )

    def frames(self, i: int, size: Literal["small", "large"] = "small") -> np.ndarray:
        """Frames of clip i, (T, 48, 48, 3) or (T, 128, 128, 3) uint8."""
        clip = self.clips[i]
        return np.asarray(getattr(self, size)[clip["offset"] : clip["offset"] + len(clip["times"])])

    def records(
        self, name: str, *, noise: float = 0.0, kind: NoiseKind = "confusion", seed: int = 0
    ) -> list[Record]:
        """Every clip as a record, its video NAME/ROW for `DrawnReader`.

        Args:
            name: Of the set; ids begin with it.
            noise: Share of clips that get wrong labels.
            kind: Which wrong labels.
            seed: Of the noise.
        """
        return [
            Record(
                id=f"{name}-{row}",
                video=f"{name}/{row}",
                labels=noisy_labels(
                    clip["labels"], seed=seed, key=f"{name}-{row}", rate=noise, kind=kind
                ),
                true_labels=tuple(clip["labels"]),
                captions=tuple(
                    Caption(time_s=t, text=text)
                    for t, text in zip(clip["times"], clip["captions"], strict=True)
                ),
                source="safeworld",
                scenario=clip["scenario"],
                difficulty=clip["difficulty"],
                interval=clip["interval"] and tuple(clip["interval"]),
                description=clip["description"],
                explanation=clip["explanation"],
            )
            for row, clip in enumerate(self.clips)
        ]


class DrawnReader:
    """Gives drawn clips where a `VideoReader` would decode files.

    Args:
        sets: By the names that records begin with.
        size: Which frames.
    """

    def __init__(self, sets: Mapping[str, DrawnClips], size: Literal["small", "large"]) -> None:
        self._sets = sets
        self._size: Literal["small", "large"] = size

    def read(self, path: str | os.PathLike[str]) -> Clip:
        """The clip NAME/ROW."""
        name, row = str(path).split("/")
        drawn = self._sets[name]
        frames = drawn.frames(int(row), self._size)
        times = np.asarray(drawn.clips[int(row)]["times"], dtype=np.float64)
        side = frames.shape[1]
        return Clip(str(path), "", frames, times, float(times[-1]), (side, side), truncated=False)


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


def draw(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: draw ``settings["clips"]`` clips."""
    seed, clips = settings["seed"], settings["clips"]
    large, small, rows, offset = [], [], [], 0
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("forkserver")) as pool:
        done = pool.map(draw_one, ((seed, i) for i in range(clips)), chunksize=32)
        for frames, row in track(done, total=clips, description=f"drawing {clips} clips"):
            large.append(frames)
            small.append(shrink(frames))
            rows.append(row | {"offset": offset})
            offset += len(frames)
    np.save(out / "large.npy", np.concatenate(large))
    np.save(out / "small.npy", np.concatenate(small))
    (out / "clips.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
