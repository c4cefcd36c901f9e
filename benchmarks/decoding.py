"""SafeLens's decoding beside torchcodec's and a plain PyAV seek: time, and how near frames are to the times wanted.

    python -m benchmarks.decoding [--repeats R --videos FOLDER] --out benchmarks/results/decoding-cpu.json

Knows what is compared and how it is measured. Knows nothing of how the files are made (`decoding_videos`).

Every system gives frames of one size, RGB, for the same times, those of SafeLens's sampling rule, with as many
threads. Each lives in a process of its own that has decoded once before the clock starts; on each file they take
turns, and the order moves on by one a repeat. The clock runs from a path to pictures in memory. In SafeLens's
time the file is also hashed and the pictures are sent from the decoding process, as in use.

torchcodec is given the FFmpeg that PyAV brings, so all decode with one library and none needs to be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from benchmarks.decoding_videos import VIDEOS, Video, make
from recipes.machine import machine
from safelens.video import ClipOptions, VideoReader, sample_times

SIDE = 448
"""Longest side of a frame, as bundles have it."""
THREADS = min(4, os.cpu_count() or 1)
"""Of the decoder: what SafeLens takes."""
WARM_UP = Video("warm-up.mp4", 2, (320, 240), 30, 30, 1.0)


@dataclass(frozen=True)
class Task:
    """What a system is to decode.

    Attributes:
        path: of the file.
        times: wanted, in seconds from the first frame.
        options: SafeLens's, of which the times are made.
        size: width and height of the frames.
    """

    path: str
    times: np.ndarray
    options: ClipOptions
    size: tuple[int, int]


@dataclass(frozen=True)
class Found:
    """What it gave: frames (T, H, W, 3), their times (T,) in seconds, and notes on the file."""

    frames: np.ndarray
    times: np.ndarray
    notes: tuple[str, ...] = ()


_readers: dict[ClipOptions, VideoReader] = {}


def safelens(task: Task) -> Found:
    """SafeLens as shipped; its decoding process lives on, as in use."""
    if task.options not in _readers:
        _readers[task.options] = VideoReader(task.options)
    clip = _readers[task.options].read(task.path)
    return Found(clip.frames, clip.timestamps, clip.notes)


def torchcodec(task: Task) -> Found:
    """Its exact mode; frames shrink in the decoder."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(
        task.path,
        dimension_order="NHWC",
        num_ffmpeg_threads=THREADS,
        seek_mode="exact",
        transforms=[Resize(task.size[::-1])],
    )
    start = decoder.metadata.begin_stream_seconds or 0.0
    found = decoder.get_frames_played_at((task.times + start).tolist())
    return Found(found.data.numpy(), found.pts_seconds.numpy() - start)


def pyav_seek(task: Task) -> Found:
    """Seek to each time and decode forward to the frame that is nearest to it.

    Where a file has no index, a seek may land after the time: then the frame is late, or there is none.
    """
    frames: list[np.ndarray] = []
    times: list[float] = []
    with av.open(task.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        tick, start = float(stream.time_base or 0), stream.start_time or 0
        half = 0.5 / float(stream.average_rate or 25)
        for wanted in task.times.tolist():
            container.seek(start + int(wanted / tick), stream=stream)
            for frame in container.decode(stream):
                at = ((frame.pts or 0) - start) * tick
                if at >= wanted - half:
                    small = frame.reformat(*task.size, "rgb24", interpolation="AREA")
                    frames.append(small.to_ndarray())
                    times.append(at)
                    break
    return Found(np.stack(frames), np.array(times))


SYSTEMS: dict[str, Callable[[Task], Found]] = {
    "exact": safelens,
    "keyframes": safelens,
    "torchcodec": torchcodec,
    "pyav_seek": pyav_seek,
}


def run(system: str, path: str, video: Video, count: int) -> dict[str, Any]:
    """One system on one file, in this process."""
    shift = video.shift_s if system == "keyframes" else 0.0
    options = ClipOptions(max_frames=count, max_side=SIDE, timeout_s=600, keyframe_shift_s=shift)
    scale = min(1.0, SIDE / max(video.size))
    width, height = (round(side * scale) for side in video.size)
    times = sample_times(video.seconds - 1 / video.fps, options)
    began = time.perf_counter()
    found = SYSTEMS[system](Task(path, times, options, (width, height)))
    seconds = time.perf_counter() - began
    assert found.frames.shape[1:] == (height, width, 3)
    return {
        "seconds": seconds,
        "frames": len(found.frames),
        "largest_error_s": float(np.abs(found.times[:, None] - times).min(axis=0).max()),
        "notes": found.notes,
    }


@contextmanager
def ffmpeg_of_pyav() -> Iterator[None]:
    """Let processes that start now find the FFmpeg libraries of PyAV's wheel by their usual names."""
    libraries = Path(av.__file__).parents[1] / "av.libs"
    before = os.environ.get("LD_LIBRARY_PATH")
    with tempfile.TemporaryDirectory() as folder:
        for path in libraries.glob("lib*.so.*"):
            usual = re.fullmatch(r"(lib\w+)-\w+(\.so\.\d+).*", path.name)
            if usual:
                (Path(folder) / "".join(usual.groups())).symlink_to(path)
        paths = [folder, str(libraries), *([before] if before else [])]
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
        try:
            yield
        finally:
            os.environ.pop("LD_LIBRARY_PATH")
            if before is not None:
                os.environ["LD_LIBRARY_PATH"] = before


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    videos = {video: make(video, folder, threads=THREADS) for video in VIDEOS}
    warm_up = make(WARM_UP, folder, threads=THREADS)
    report: dict[str, Any] = {"machine": machine(THREADS)}
    report["versions"] = {
        "av": version("av"),
        "ffmpeg": av.ffmpeg_version_info,
        "torchcodec": _version("torchcodec"),
    }
    report["left_out"] = {}
    report["files"] = {}
    with ExitStack() as stack:
        stack.enter_context(ffmpeg_of_pyav())
        pools: dict[str, ProcessPoolExecutor] = {}
        for name in SYSTEMS:
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            try:
                pool.submit(run, name, str(warm_up), WARM_UP, args.frames).result()
            except Exception as error:
                if name != "torchcodec":
                    raise
                report["left_out"][name] = _why(error)
                continue
            pools[name] = pool
        for video, path in videos.items():
            runs, failed = _turns(pools, str(path), video, args)
            report["files"][video.name] = _figures(video, path, runs) | {"failed": failed}
    return report


def _turns(
    pools: dict[str, ProcessPoolExecutor], path: str, video: Video, args: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """All systems on one file, one at a time: their runs, and why torchcodec has none."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pools}
    failed: dict[str, str] = {}
    names = list(pools)
    for repeat in range(args.repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            if name not in runs:
                continue
            try:
                runs[name].append(pools[name].submit(run, name, path, video, args.frames).result())
            except Exception as error:
                if name != "torchcodec":
                    raise
                failed[name] = _why(error)
                del runs[name]
    return runs, failed


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _figures(video: Video, path: Path, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What a file is, and each system's figures on it."""
    out: dict[str, Any] = {
        "seconds": video.seconds,
        "size": video.size,
        "fps": video.fps,
        "gop": video.gop,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "keyframe_shift_s": video.shift_s,
        "systems": {},
    }
    for name, found in runs.items():
        seconds = [r["seconds"] for r in found]
        out["systems"][name] = {
            "seconds": seconds,
            "median_s": statistics.median(seconds),
            "frames": found[0]["frames"],
            "largest_error_s": max(r["largest_error_s"] for r in found),
            "notes": found[0]["notes"],
            "times_faster_than": {
                other: _ratio([r["seconds"] for r in runs[other]], seconds)
                for other in ("torchcodec", "pyav_seek")
                if other in runs and other != name
            },
        }
    return out


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Their time over ours in the same repeat."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--videos", type=Path, help="where to keep the files for another run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = cast(Path, args.videos or Path(folder))
        videos.mkdir(parents=True, exist_ok=True)
        report = measure(args, videos)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
