"""Writes a SafeWorld data set: videos, records, SafeWatch-Bench-style files, a sheet of samples.

Knows the folder's layout, how to continue an interrupted run and how to use several processes.
Knows nothing of how a scene is drawn (scene), stored (encode) or mislabelled (noise), and imports
no torch, so a worker process starts in a fraction of a second.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safelens import __version__
from safelens.data.records import Record, Split, write_records
from safelens.policy import Policy
from safelens.prompts import guardrail_answer
from safelens.safeworld import Scene, sample_scene
from safelens.safeworld.encode import encode, format_of, frame_times, is_complete
from safelens.safeworld.export import write_safewatch
from safelens.safeworld.noise import NOISE_KINDS, NoiseKind, noisy_labels
from safelens.safeworld.sheet import write_sheet
from safelens.verdict import Caption
from safelens.video import ClipOptions, sample_times

SCHEMA = "safelens.safeworld/1"
_SPLITS: tuple[tuple[Split, float], ...] = (("train", 0.8), ("val", 0.9), ("test", 1.0))


class DatasetError(Exception):
    """The data set cannot be written as asked; the message says what to change."""


@dataclass(frozen=True)
class Progress:
    """How far writing is: scenes done of all, and videos found complete from an earlier run."""

    done: int
    total: int
    reused: int


def split_of(seed: int, index: int) -> Split:
    """The part a scene belongs to: 80 % train, 10 % val, 10 % test, by a hash of its index.

    A twin has its original's index, so the two are never in different parts.
    """
    digest = hashlib.sha256(f"split/{seed}/{index}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return next(name for name, end in _SPLITS if position < end)


def clip_id(seed: int, index: int, *, twin: bool = False) -> str:
    """A clip's id, which is also the stem of its file."""
    return f"sw{seed}-{index:06d}" + ("-twin" if twin else "")


def scene_of(name: str) -> Scene | None:
    """The scene whose clip has this id, as `clip_id` writes it; None if it is no such id."""
    if (match := re.fullmatch(r"sw(\d+)-(\d{6,})(-twin)?", name, re.ASCII)) is None:
        return None
    scene = sample_scene(int(match[1]), int(match[2]))
    return scene.twin() if match[3] else scene


def write_dataset(
    out: str | os.PathLike[str],
    *,
    clips: int,
    seed: int,
    noise: float = 0.0,
    noise_kind: NoiseKind = "confusion",
    jobs: int = 1,
    with_twins: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Writes, or continues to write, a data set.

    The folder then holds `videos/`, `records.jsonl`, `safeworld.json` (seed, counts, versions),
    `samples.png`, and `safewatch/` with benchmark files of the test part and an SFT file of the
    train part. Complete videos from an earlier run of the same world and seed are kept, so an
    interrupted run continues; more clips, other noise or added twins reuse them too. Noise falls on
    the train part only: validation and test labels hold.

    Args:
        out: the folder; new, empty, or of the same seed and world.
        clips: number of scenes; twins come on top.
        seed: of everything drawn.
        noise: share of train clips that get wrong labels, 0 to 1.
        noise_kind: `symmetric` or `confusion`.
        jobs: processes that draw; 1 draws in this process.
        with_twins: also write the safe twin of every violating scene.
        on_progress: called after every scene, in this process.

    Returns:
        The content of `safeworld.json`.

    Raises:
        DatasetError: an argument is out of range, or the folder holds something else.
        OSError: a file cannot be written.
        KeyboardInterrupt: passed on; every video in the folder is complete.
    """
    if clips < 1 or jobs < 1:
        raise DatasetError(f"clips={clips}, jobs={jobs}: both must be at least 1")
    if not 0 <= noise <= 1 or noise_kind not in NOISE_KINDS:
        raise DatasetError(
            f"noise={noise}, kind={noise_kind!r}: expected a share from 0 to 1 and one of"
            f" {', '.join(NOISE_KINDS)}"
        )
    out = Path(out)
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "package": __version__,
        "world": world_fingerprint(),
        "seed": seed,
        "clips": clips,
        "with_twins": with_twins,
        "noise": {"rate": noise, "kind": noise_kind if noise else None, "split": "train"},
        "complete": False,
    }
    _claim(out, about)

    work = [(str(out), seed, index, with_twins) for index in range(clips)]
    made: dict[int, list[Record]] = {}
    reused = 0
    for index, records, kept in _run(work, jobs):
        made[index] = records
        reused += kept
        if on_progress is not None:
            on_progress(Progress(len(made), clips, reused))

    policy = Policy.load("default")
    records = [
        _finish(record, policy, seed=seed, rate=noise, kind=noise_kind)
        for index in range(clips)
        for record in made[index]
    ]
    write_records(out / "records.jsonl", records)
    write_safewatch(out, records, policy)
    write_sheet(out / "samples.png", _one_per_scenario(records, seed))
    about |= {"complete": True, "counts": _counts(records, seed)}
    _write_json(out / "safeworld.json", about)
    return about


def make_scene_clips(
    out: str | os.PathLike[str], seed: int, index: int, with_twins: bool
) -> tuple[int, list[Record], int]:
    """Writes one scene's video, and its twin's, unless complete files are there.

    Args:
        out: the data set's folder.
        seed: of the data set.
        index: of the scene.
        with_twins: whether a violating scene's safe twin is written too.

    Returns:
        The index, the records (true labels, no response yet), and how many videos were kept.
    """
    scene = sample_scene(seed, index)
    scenes = [scene]
    if with_twins and scene.truth.labels:
        scenes.append(scene.twin())
    format = format_of(seed, index)
    records, kept = [], 0
    for number, drawn in enumerate(scenes):
        name = clip_id(seed, index, twin=number == 1)
        path = Path(out) / "videos" / f"{name}{format.suffix}"
        if is_complete(path, drawn, format):
            kept += 1
        else:
            encode(drawn, format, path)
        truth, times = drawn.truth, frame_times(drawn, format)
        shown_s = float(times[-1] + times[1])
        interval = truth.interval and (truth.interval[0], min(truth.interval[1], shown_s))
        records.append(
            Record(
                id=name,
                video=f"videos/{path.name}",
                labels=truth.labels,
                captions=_captions(drawn, times),
                source="safeworld",
                split=split_of(seed, index),
                true_labels=truth.labels,
                scenario=truth.scenario,
                twin_of=clip_id(seed, index) if number == 1 else None,
                interval=interval,
                difficulty=truth.difficulty,
                tags=tuple(truth.tags),
                description=truth.description,
                explanation=truth.explanation,
            )
        )
    return index, records, kept


def world_fingerprint() -> str:
    """SHA-256 over the code that decides what a clip shows; another value means another world."""
    digest = hashlib.sha256()
    not_drawing = {"writer.py", "noise.py", "policies.py", "export.py", "sheet.py"}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in not_drawing:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _captions(scene: Scene, times: np.ndarray) -> tuple[Caption, ...]:
    """Captions at the frames that the sampling rule would pick."""
    wanted = sample_times(float(times[-1]), ClipOptions())
    shown = [float(times[int(np.abs(times - t).argmin())]) for t in wanted]
    return tuple(Caption(time_s=round(t, 3), text=scene.caption(t)) for t in shown)


def _finish(record: Record, policy: Policy, *, seed: int, rate: float, kind: NoiseKind) -> Record:
    labels = record.labels
    if record.split == "train":
        labels = noisy_labels(labels, seed=seed, key=record.id, rate=rate, kind=kind)
    return record.model_copy(
        update={"labels": labels, "response": guardrail_answer(policy, labels)}
    )


def _run(
    work: list[tuple[str, int, int, bool]], jobs: int
) -> Iterator[tuple[int, list[Record], int]]:
    if jobs == 1:
        for item in work:
            yield make_scene_clips(*item)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_leave_interrupts_to_parent)
    waiting: list[Future[tuple[int, list[Record], int]]] = []
    try:
        waiting = [pool.submit(make_scene_clips, *item) for item in work]
        for future in as_completed(waiting):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Makes the folder, or checks that it holds the same world and seed."""
    card = out / "safeworld.json"
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is a file: name a folder")
    if card.is_file():
        try:
            there = json.loads(card.read_text("utf-8"))
            found = {key: there[key] for key in ("schema", "seed", "world")}
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{card} is damaged ({error}): remove {out} and start anew"
            ) from None
        for key, value in found.items():
            if value != about[key]:
                raise DatasetError(
                    f"{out} holds clips of another {key} ({value}; now {about[key]}):"
                    " name another folder, or remove this one"
                )
    elif out.is_dir() and any(out.iterdir()):
        raise DatasetError(
            f"{out} is not empty and holds no safeworld.json: name a new or empty folder"
        )
    (out / "videos").mkdir(parents=True, exist_ok=True)
    for part in (out / "videos").glob(".*.part"):
        part.unlink()
    _write_json(card, about)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    os.replace(part, path)


def _one_per_scenario(records: list[Record], seed: int) -> list[Scene]:
    """The first scene of every scenario, as violating where it can be; of doubles only one."""
    first: dict[str, int] = {}
    for record in records:
        if record.twin_of is None and record.scenario is not None:
            kind = "two at once" if "+" in record.scenario else record.scenario
            first.setdefault(kind, int(record.id.rsplit("-", 1)[1]))
    scenes = [sample_scene(seed, index) for _, index in sorted(first.items())]
    return [scene.twin() if scene.truth.twin else scene for scene in scenes]


def _counts(records: list[Record], seed: int) -> dict[str, Any]:
    def count(values: Iterator[str]) -> dict[str, int]:
        return dict(sorted(Counter(values).items()))

    originals = [r for r in records if r.twin_of is None]
    return {
        "videos": len(records),
        "twins": len(records) - len(originals),
        "mislabelled": sum(bool(r.mislabelled) for r in records),
        "splits": count(str(r.split) for r in records),
        "true_labels": count(label for r in records for label in r.true_labels or ("safe",)),
        "scenarios": count(str(r.scenario) for r in originals),
        "difficulty": count(str(r.difficulty) for r in originals),
        "formats": count(format_of(seed, int(r.id.split("-")[1])).name for r in records),
    }
