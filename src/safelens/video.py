"""From a file to a `Clip`: a few frames of a video with their true timestamps.

Knows the sampling rule, the bounds a file must keep (time, memory, size) and every way in which a
file can be bad. Decoding itself happens in a child process (`_decode_worker`) that can be killed; this
module asks it through `_decoder` and never touches a codec. Knows nothing of models or policies.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import signal
import stat
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from safelens._decoder import MEMORY_EXIT, Worker

__all__ = ["Clip", "ClipOptions", "VideoError", "VideoReader", "file_digest", "sample_times"]


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """What a clip holds and what a file may cost.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    min_frames: int = 2
    """Fewest frames in a clip; a video with fewer has its frames repeated (video models need two)."""
    max_frames: int = 20
    """Most frames in a clip (paper, appendix M)."""
    max_fps: float = 1.0
    """Most frames per second of video (paper, appendix M)."""
    keyframe_shift_s: float = 0.0
    """How far a keyframe may lie from a wanted time and stand in for it, seconds; 0 decodes exactly.

    Keyframes are taken where every wanted time has one within the bound, and every frame is decoded
    exactly where one has not; the clip's notes say which. Half the distance between keyframes is enough for
    all times but the last, which may need all of it."""
    max_side: int = 256
    """Longest side of a frame in pixels; larger frames shrink, smaller ones stay."""
    timeout_s: float = 60.0
    """Wall-clock seconds one file may take, hashing included."""
    max_memory_mb: int = 2048
    """Resident memory of the decoding process, in MB."""
    max_pixels: int = 8192 * 4352
    """Largest coded picture, width x height; the default is H.264 level 6 and admits 8K."""

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "min_frames": (1, self.max_frames),
            "max_frames": (1, 4096),
            "max_fps": (1e-6, 1000),
            "keyframe_shift_s": (0, 86400),
            "max_side": (1, 16384),
            "timeout_s": (1e-3, 86400),
            "max_memory_mb": (64, 1 << 20),
            "max_pixels": (1, 1 << 30),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"ClipOptions.{name}={value}: expected {low:g} to {high:g}")


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames sampled from one video."""

    path: str
    """The path as it was given."""
    sha256: str
    """Of the file's bytes, lower-case hex."""
    frames: np.ndarray
    """uint8 (T, H, W, 3), RGB, upright, square pixels."""
    timestamps: np.ndarray
    """float64 (T,): when each frame is shown, in seconds from the start of the video stream; never
    falling, and repeated only where frames are repeated (see `notes`)."""
    duration_s: float | None
    """The duration that the file declares, or the one measured where it declares none or a wrong
    one; None for pictures without duration."""
    source_size: tuple[int, int]
    """(width, height) as stored, after rotation."""
    truncated: bool
    """True when a part of the declared duration could not be decoded."""
    notes: tuple[str, ...] = ()
    """What a reader of the verdict should know about the file, in words."""

    def __repr__(self) -> str:
        span = (
            f"{self.timestamps[0]:.2f}..{self.timestamps[-1]:.2f} s" if len(self.timestamps) else ""
        )
        return (
            f"Clip({self.path!r}, frames {self.frames.shape}, {span}, duration {self.duration_s}, "
            f"source {self.source_size}, truncated={self.truncated}, notes={self.notes})"
        )


class VideoError(Exception):
    """A file that gives no clip.

    Attributes:
        code: one of `not_found`, `is_directory`, `not_a_file`, `no_permission`, `empty_file`,
            `not_a_video`, `unreadable`, `no_video_stream`, `unsupported_codec`, `no_frames`,
            `too_large`, `timeout`, `out_of_memory`, `decoder_crashed`.
        message: the path, what is wrong, and what to do.
        sha256: of the file where it was read completely before the error, else None.
    """

    def __init__(self, code: str, message: str, *, sha256: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.sha256 = sha256

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_error, (self.code, self.message, self.sha256))


def _rebuild_error(code: str, message: str, sha256: str | None) -> VideoError:
    return VideoError(code, message, sha256=sha256)


def sample_times(duration_s: float, options: ClipOptions) -> np.ndarray:
    """Return the times at which a video is looked at (paper, appendix M).

    Between `min_frames` and `max_frames`, at most `max_fps` a second, evenly spaced, both ends
    included. `min_frames` wins over `max_fps` on very short videos.

    Args:
        duration_s: seconds from the first frame to the last one.
        options: the sampling bounds.

    Returns:
        float64 (n,), rising from 0 to `duration_s`.

    Raises:
        ValueError: the duration is negative or not finite.
    """
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise ValueError(f"duration_s={duration_s}: expected a finite number of seconds, 0 or more")
    by_rate = math.floor(duration_s * options.max_fps + 1e-9) + 1
    n = max(options.min_frames, min(options.max_frames, by_rate))
    return np.linspace(0.0, duration_s, n)


def file_digest(path: str | os.PathLike[str], timeout_s: float = 60.0) -> str:
    """SHA-256 of a video file, in lower-case hex: what `Clip.sha256` will be.

    Raises:
        VideoError: as `VideoReader.read` does for what is no readable, non-empty, regular file.
    """
    name = os.fspath(path)
    _check_file(name)
    try:
        return _hash_file(name, time.monotonic() + timeout_s)
    except _HashError as error:
        raise error.video_error from None


def _stop(worker: Worker, owner: int) -> None:
    # A forked copy of the owner must not kill the process that the owner still uses.
    if os.getpid() == owner:
        worker.kill()


class VideoReader:
    """Reads videos through one decoding process that is restarted whenever it had to be killed.

    The process starts with the first file and serves all that follow. One reader decodes one file
    at a time; threads may share it (they wait for each other) or have one each to run in parallel.

    Example:
        with VideoReader(ClipOptions(max_side=128)) as reader:
            clip = reader.read("clip.mp4")
    """

    def __init__(self, options: ClipOptions | None = None) -> None:
        self.options = options or ClipOptions()
        self.starts = 0
        """How many decoding processes this reader has started."""
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._owner = os.getpid()
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._closed = False

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding process; the reader cannot be used afterwards."""
        with self._lock:
            self._closed = True
            self._drop()

    def read(self, path: str | os.PathLike[str]) -> Clip:
        """Decode one file.

        The file is hashed here while the other process decodes it: reading it once more costs
        little beside decoding (about 1 GB a second), and nothing where it is still cached.

        Args:
            path: a file of any kind; nothing else is opened for it, whatever it contains.

        Returns:
            The clip; `truncated` says whether the file was whole.

        Raises:
            VideoError: the file gives no frame within the bounds; `code` says why.
            RuntimeError: the reader is closed, or no decoding process can be started here.
        """
        name = os.fspath(path)
        _check_file(name)
        with self._lock:
            if self._closed:
                raise RuntimeError("this VideoReader is closed: open a new one")
            return self._read(name)

    def _read(self, name: str) -> Clip:
        worker = self._ready()
        options = self.options
        deadline = time.monotonic() + options.timeout_s
        sha256: str | None = None
        try:
            with worker.deadline(options.timeout_s):
                worker.send({"path": os.path.abspath(name)})
                sha256 = _hash_file(name, deadline)
                answer = worker.receive()
                frames = None
                if "error" not in answer:
                    frames = worker.receive_frames(tuple(answer["shape"]), options)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            status = self._drop()
            raise self._failure(name, worker, status, sha256, error) from None
        except BaseException:
            self._drop()  # an interrupted exchange leaves an answer in the pipe
            raise
        if frames is None:
            code, detail = answer["error"]["code"], answer["error"]["detail"]
            raise VideoError(code, f"{name}: {detail}", sha256=sha256)
        return Clip(
            path=name,
            sha256=sha256,
            frames=frames,
            timestamps=np.array(answer["timestamps"], np.float64),
            duration_s=answer["duration_s"],
            source_size=(int(answer["source_size"][0]), int(answer["source_size"][1])),
            truncated=bool(answer["truncated"]),
            notes=tuple(answer["notes"]),
        )

    def _ready(self) -> Worker:
        if os.getpid() != self._owner:  # forked: the process belongs to the parent
            self._worker, self._finalizer, self._owner = None, None, os.getpid()
        if self._worker is not None and self._worker.process.poll() is not None:
            self._drop()
        if self._worker is None:
            try:
                self._worker = Worker(self.options)
            except (OSError, EOFError) as error:
                raise RuntimeError(
                    f"the decoding process does not start ({error}): check that "
                    f"`{sys.executable} -m safelens._decode_worker 0` runs and that `av` is installed"
                ) from error
            self.starts += 1
            self._finalizer = weakref.finalize(self, _stop, self._worker, self._owner)
        return self._worker

    def _drop(self) -> int | None:
        worker, self._worker = self._worker, None
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if worker is None or os.getpid() != self._owner:
            return None
        return worker.kill()

    def _failure(
        self, name: str, worker: Worker, status: int | None, sha256: str | None, error: Exception
    ) -> VideoError:
        options = self.options
        if isinstance(error, _HashError):
            return error.video_error
        if worker.timed_out or status == -signal.SIGALRM:
            return _timeout(name, options.timeout_s, sha256)
        if status == MEMORY_EXIT:
            return VideoError(
                "out_of_memory",
                f"{name}: decoding needed more than {options.max_memory_mb} MB and was stopped; "
                "raise ClipOptions.max_memory_mb or scale the video down",
                sha256=sha256,
            )
        words = worker.last_words()
        return VideoError(
            "decoder_crashed",
            f"{name}: the decoding process ended with status {status}"
            + (f" ({words.splitlines()[-1]})" if words else "")
            + "; the file is damaged or hostile: re-encode it, or report it",
            sha256=sha256,
        )


class _HashError(OSError):
    def __init__(self, video_error: VideoError) -> None:
        super().__init__(video_error.message)
        self.video_error = video_error


def _timeout(name: str, timeout_s: float, sha256: str | None = None) -> VideoError:
    return VideoError(
        "timeout",
        f"{name}: not read within {timeout_s:g} s; raise ClipOptions.timeout_s, or re-encode the "
        "video with more keyframes or a smaller picture",
        sha256=sha256,
    )


def _check_file(name: str) -> None:
    """Refuse what is no readable, non-empty, regular file, each case with its own code."""
    try:
        info = os.stat(name)
        if stat.S_ISDIR(info.st_mode):
            raise VideoError(
                "is_directory", f"{name}: is a folder; pass the video files in it one by one"
            )
        if not stat.S_ISREG(info.st_mode):
            raise VideoError(
                "not_a_file", f"{name}: is a device or pipe; copy its content to a regular file"
            )
        if info.st_size == 0:
            raise VideoError("empty_file", f"{name}: is empty (0 bytes); fetch or export it again")
        with open(name, "rb"):
            pass
    except FileNotFoundError:
        raise VideoError("not_found", f"{name}: no such file; check the path") from None
    except NotADirectoryError:
        raise VideoError(
            "not_found", f"{name}: no such file; a part of the path is a file"
        ) from None
    except PermissionError:
        raise VideoError(
            "no_permission", f"{name}: this user may not read it; change its permissions"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        code = "not_found" if isinstance(error, ValueError) else "unreadable"
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            code = "not_found"
        raise VideoError(code, f"{name!r}: cannot be opened ({error}); check the path") from None


def _hash_file(name: str, deadline: float) -> str:
    digest = hashlib.sha256()
    try:
        with Path(name).open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError
    except TimeoutError:
        message = f"{name}: its {os.path.getsize(name)} bytes were not read in time; raise ClipOptions.timeout_s"
        raise _HashError(VideoError("timeout", message)) from None
    except OSError as error:
        message = f"{name}: reading failed ({error}); check the disk or fetch the file again"
        raise _HashError(VideoError("unreadable", message)) from None
    return digest.hexdigest()
