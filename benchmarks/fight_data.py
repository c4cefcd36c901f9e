"""Stages that turn a folder of clips into arrays, once: files, grey frames, fixed motion, states of `tiny`.

Knows the folder's form (`safelens.data.folder`) and where each front end is. Knows nothing of folds, of what
is learned, or of what the arrays are compared for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks import fight_motion as motion
from recipes.stages import Stage
from safelens.bundle import Bundle
from safelens.data.read import read_dataset
from safelens.data.records import Record
from safelens.policy import Policy
from safelens.video import ClipOptions, VideoReader

CLASSES = ("noFight", "fight")
NAMES = {"fight": "violence", "noFight": "safe"}


class NoVideos(Exception):
    """The folder of clips is missing or is not what is expected; the message says what is."""


def records_of(videos: Path) -> list[Record]:
    """The labelled clips, each with the source that it was cut from as its group.

    Raises:
        NoVideos: There is no such folder, or some clip in it has no label or no source.
    """
    wanted = (
        "expected a folder of clips with labels.csv (columns file, label: fight or noFight, source_group), "
        "such as the surveillance clips of Akti et al. 2019 (arXiv 2002.04355, "
        "https://github.com/seymanurakti/fight-detection-surv-dataset), with the video that each was cut "
        "from; `safelens data check FOLDER --map fight=violence --map noFight=safe` says whether one is whole"
    )
    if not (videos / "labels.csv").is_file():
        raise NoVideos(f"{videos / 'labels.csv'}: missing; {wanted}")
    data = read_dataset(videos, Policy.load("default"), names=NAMES)
    nameless = [record.id for record in data.records if not record.group]
    if data.problems or nameless or not data.records:
        raise NoVideos(
            f"{videos}: {len(data.problems)} problems, {len(nameless)} clips without a source; {wanted}"
        )
    return list(data.records)


def is_fight(records: list[Record]) -> np.ndarray:
    """1 where a clip is a fight, else 0, shape (N,)."""
    return np.array([bool(record.labels) for record in records], np.int64)


def folder_digest(videos: Path) -> str:
    """SHA-256 of the names and bytes of all files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in videos.iterdir() if p.is_file()):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def decode(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `grey.npz` with frames (N, STEPS, H, W), times, mask; `files.npy`, what the files say."""
    records = records_of(Path(settings["videos"]))
    with VideoReader(motion.OPTIONS) as reader:
        clips = [motion.grey(reader.read(r.video)) for r in track(records, description="frames")]
    frames, mask = motion.padded([clip.frames for clip in clips], motion.STEPS)
    times, _ = motion.padded([clip.times for clip in clips], motion.STEPS)
    np.savez_compressed(out / "grey.npz", frames=frames, times=times, mask=mask)
    np.save(out / "files.npy", [motion.file_properties(Path(r.video)) for r in records])


def fixed_motion(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `motion.npz` with steps (N, STEPS-1, MOTION) and mask; `differences.npy`."""
    torch.set_num_threads(1)
    clips = grey_clips(needs["frames"])
    found = [motion.motion_steps(clip) for clip in track(clips, description="motion")]
    steps, mask = motion.padded(found, motion.STEPS - 1)
    np.savez(out / "motion.npz", steps=steps, mask=mask)
    np.save(out / "differences.npy", [motion.plain_differences(clip) for clip in clips])


def tiny_states(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `tiny.npz`, S1's hidden states (N, T, D) of the embedded bundle, and what its guard accepts."""
    from safelens.domain import DomainGuard
    from safelens.train.state_store import StateStore
    from safelens.train.states import collect_states
    from safelens.vlm import VisionLanguageModel

    torch.set_num_threads(1)
    bundle = Bundle.load("tiny")
    screen = bundle.settings.screen
    vlm = VisionLanguageModel.load(
        bundle.path(screen.model), dtype=torch.float32, frame_pixels=screen.frame_pixels
    )
    records = records_of(Path(settings["videos"]))
    store = StateStore(out / "states", {"bundle": bundle.sha256})
    with VideoReader(ClipOptions(**bundle.settings.clip.model_dump())) as reader:
        found = collect_states(vlm, bundle.policy, records, reader, store)
    assert screen.domain is not None
    familiar = DomainGuard.load(bundle.path(screen.domain)).accepts(found.features)
    np.savez(out / "tiny.npz", steps=found.question.numpy())
    (out / "familiar.json").write_text(json.dumps(int(familiar.sum())) + "\n")


def grey_clips(folder: Path) -> list[motion.Grey]:
    """The clips that `decode` left in a folder, without padding."""
    with np.load(folder / "grey.npz") as found:
        frames, times, mask = found["frames"], found["times"], found["mask"]
    return [motion.Grey(f[m], t[m]) for f, t, m in zip(frames, times, mask, strict=True)]


def data_stages(videos: Path) -> dict[str, Stage]:
    """The stages by name: frames, motion, tiny."""
    source = {"videos": str(videos), "sha256": folder_digest(videos)}
    frames = Stage("frames", decode, source)
    return {
        "frames": frames,
        "motion": Stage("motion", fixed_motion, {}, (frames,)),
        "tiny": Stage("tiny", tiny_states, source | {"bundle": Bundle.load("tiny").sha256}),
    }
