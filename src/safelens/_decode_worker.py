"""The process that decodes: answers one request at a time on its pipes, within its bounds.

Knows the protocol (length-prefixed JSON, then raw frames), the memory and time bounds, and that it
must not outlive its owner. What a file means is in `_decode`. Imports av, numpy and Pillow, never torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import IO, Any

from safelens._decode import DecodeError, decode
from safelens._decoder import HEADER, MEMORY_EXIT
from safelens.video import ClipOptions

_WATCH_S = 0.05
_MB = 1 << 20


def _statm() -> tuple[int, int]:
    """Return this process's (virtual, resident) bytes, zeros where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            virtual, resident = file.read().split()[:2]
    except OSError:
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return int(virtual) * page, int(resident) * page


def _watch(owner: int, limit: int) -> None:
    """End the process when it grows too large or its owner is gone."""
    while True:
        time.sleep(_WATCH_S)
        if _statm()[1] > limit:
            os._exit(MEMORY_EXIT)
        if owner and os.getppid() != owner:
            os._exit(0)


def _bound(options: ClipOptions, owner: int) -> None:
    limit = options.max_memory_mb * _MB
    virtual, resident = _statm()
    try:
        import resource

        # Address space stops one huge allocation before the watch could see it; the watch stops growth.
        space = virtual + limit + 256 * _MB
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or hard > space:
            resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # no such limit on this system: the watch remains
        pass
    threading.Thread(target=_watch, args=(owner, resident + limit), daemon=True).start()


def _receive(pipe: IO[bytes]) -> dict[str, Any] | None:
    head = pipe.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    message: dict[str, Any] = json.loads(pipe.read(HEADER.unpack(head)[0]))
    return message


def _send(pipe: IO[bytes], message: dict[str, Any], frames: memoryview | None = None) -> None:
    body = json.dumps(message).encode()
    pipe.write(HEADER.pack(len(body)) + body)
    if frames is not None:
        pipe.write(frames)
    pipe.flush()


def _answer(path: str, options: ClipOptions) -> tuple[dict[str, Any], memoryview | None]:
    try:
        decoded = decode(path, options)
    except DecodeError as error:
        return {"error": {"code": error.code, "detail": error.detail}}, None
    except MemoryError:
        detail = (
            f"decoding needed more than {options.max_memory_mb} MB; raise ClipOptions.max_memory_mb "
            "or scale the video down"
        )
        return {"error": {"code": "out_of_memory", "detail": detail}}, None
    except Exception as error:
        # One odd file must not cost the process; the owner learns what happened.
        detail = f"decoding failed ({type(error).__name__}: {error}); re-encode it, or report it"
        return {"error": {"code": "decoder_crashed", "detail": detail}}, None
    frames = decoded.frames
    message = {
        "shape": frames.shape,
        "timestamps": decoded.timestamps,
        "duration_s": decoded.duration_s,
        "source_size": decoded.source_size,
        "truncated": decoded.truncated,
        "notes": decoded.notes,
    }
    return message, frames.data.cast("B")


def main() -> None:
    """Serve requests until the owner closes the pipe."""
    owner = int(sys.argv[1])
    requests = sys.stdin.buffer
    # Whatever prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first = _receive(requests)
    if first is None:
        return
    options = ClipOptions(**first["options"])
    _bound(options, owner)
    _send(answers, {"ready": True})
    while (request := _receive(requests)) is not None:
        # The owner kills on time; the alarm is for a decoder that hangs after the owner died.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, options.timeout_s + 5.0)
        message, frames = _answer(request["path"], options)
        _send(answers, message, frames)
        del message, frames
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
