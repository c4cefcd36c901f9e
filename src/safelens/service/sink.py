"""Where the bytes of a video go as they arrive: hashed, counted, looked at, written.

Knows when enough is enough. Memory is one chunk, whatever the size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from safelens.service.sniff import HEAD, media_type


@dataclass(frozen=True)
class Received:
    """A whole video.

    Attributes:
        path: the file.
        size: bytes.
        sha256: lower-case hex.
        kind: media type, as sniffed.
    """

    path: Path
    size: int
    sha256: str
    kind: str


class SinkError(Exception):
    """What arrives is not taken; `code` is a code of `problems`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class FileSink:
    """Writes one file; a context manager, after which the file is there only if `finish` was reached.

    Args:
        path: to be written.
        most_bytes: that are taken.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._most = most_bytes
        self._digest = hashlib.sha256()
        self._head = b""
        self._kind: str | None = None
        self._size = 0
        self._done = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if not self._done:
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Take more. Raises SinkError (too_large, not_a_video), OSError."""
        self._size += len(chunk)
        if self._size > self._most:
            raise SinkError("too_large", f"more than {self._most} bytes; expected at most that")
        if self._kind is None:
            self._head += chunk[: HEAD - len(self._head)]
            if len(self._head) >= HEAD:
                self._recognise()
        self._digest.update(chunk)
        self._file.write(chunk)

    def finish(self) -> Received:
        """It is whole. Raises SinkError (not_a_video)."""
        if self._kind is None:
            self._recognise()
        assert self._kind is not None
        self._done = True
        return Received(self._path, self._size, self._digest.hexdigest(), self._kind)

    def _recognise(self) -> None:
        self._kind = media_type(self._head)
        if self._kind is None:
            found = "an empty file" if not self._head else f"it begins with {self._head[:8]!r}"
            raise SinkError(
                "not_a_video", f"{found}; expected a video such as MP4, WebM, MKV, AVI or GIF"
            )
