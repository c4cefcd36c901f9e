"""The owner's end of the decoding process: start it, ask it, bound its time, kill it.

Knows pipes and processes; knows nothing of video beyond the shape that frames may have. The other end
is `_decode_worker`.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from safelens.video import ClipOptions

MEMORY_EXIT = 77
"""Exit status of a process that outgrew its memory bound."""
HEADER = struct.Struct("!Q")
"""Length of the JSON message that follows."""
_START_TIMEOUT_S = 120.0
_MAX_HEADER = 1 << 20


class Worker:
    """The decoding process as its owner sees it: start, ask, kill."""

    def __init__(self, options: ClipOptions) -> None:
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        # Per-thread allocator arenas reserve address space that the memory bound would count.
        env.update(MALLOC_ARENA_MAX="2", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "safelens._decode_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in: IO[bytes] = self.process.stdin
        self._out: IO[bytes] = self.process.stdout
        self.timed_out = False
        try:
            with self.deadline(_START_TIMEOUT_S):
                self.send({"options": asdict(options)})
                self.receive()
        except (OSError, EOFError):
            self.kill()
            raise

    def deadline(self, seconds: float) -> _Deadline:
        return _Deadline(self, seconds)

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self._in.write(HEADER.pack(len(body)) + body)
        self._in.flush()

    def receive(self) -> dict[str, Any]:
        # JSON and not pickle: what decodes hostile files must not be able to run code out here.
        (length,) = HEADER.unpack(self._read(HEADER.size))
        if length > _MAX_HEADER:
            raise EOFError("the decoding process sent nonsense")
        message = json.loads(self._read(length))
        if not isinstance(message, dict):
            raise EOFError("the decoding process sent nonsense")
        return message

    def receive_frames(self, shape: tuple[int, ...], options: ClipOptions) -> np.ndarray:
        sane = (
            len(shape) == 4
            and 1 <= shape[0] <= max(options.max_frames, options.min_frames)
            and all(1 <= side <= options.max_side for side in shape[1:3])
            and shape[3] == 3
        )
        if not sane:
            raise EOFError(f"the decoding process sent frames of shape {shape}")
        frames = np.empty(shape, np.uint8)
        view = frames.data.cast("B")
        while view:
            count = self._out.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("the decoding process ended in the middle of its answer")
            view = view[count:]
        return frames

    def _read(self, count: int) -> bytes:
        data = self._out.read(count)
        if len(data) < count:
            raise EOFError("the decoding process ended")
        return data

    def last_words(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 2000))
        return self._log.read().decode(errors="replace").strip()

    def kill(self) -> int:
        """Stop the process at once and return its exit status."""
        self.process.kill()
        status = self.process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
                pipe.close()
        return status


class _Deadline:
    """Kills a worker that has not answered in time."""

    def __init__(self, worker: Worker, seconds: float) -> None:
        self._worker = worker
        self._timer = threading.Timer(max(seconds, 0.0), self._fire)
        self._timer.daemon = True

    def _fire(self) -> None:
        self._worker.timed_out = True
        self._worker.process.kill()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
