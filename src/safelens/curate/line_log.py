"""An append-only file of JSON Lines that a killed run leaves whole and the next one continues.

Knows lines and what a kill, an interrupt or a full disk does to the last one. Knows nothing of what
the lines mean.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


class LogError(Exception):
    """The file cannot be continued or written; the message names it and says what to do."""


class LineLog:
    """Appends JSON objects to a file, each as one whole line or not at all.

    Args:
        path: the file; it and its folder are made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._end = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The objects that the file holds, in order; to be read to the end before `add`.

        A last line without its end is what a killed run left: it is not read, and `add` replaces it.

        Raises:
            LogError: a whole line is no JSON object, or the file cannot be read.
        """
        self._end = 0
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        return
                    yield self._object(line, number)
                    self._end += len(line)
        except OSError as error:
            raise LogError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def add(self, line: str) -> None:
        """Append a line, given without its end; it is in the file when this returns.

        Raises:
            LogError: the file cannot be written; it then ends with the last whole line.
        """
        data = line.encode() + b"\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
                self._file = os.open(self.path, flags, 0o666)
                os.ftruncate(self._file, self._end)
            if os.write(self._file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if self._file is not None:
                with suppress(OSError):
                    os.ftruncate(self._file, self._end)
            raise LogError(
                f"{self.path}: cannot be written ({error.strerror or error}). What is in it is "
                "whole: make room or give rights, and give the same command again to go on"
            ) from error
        self._end += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _object(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise LogError(
                f"{self.path}:{number}: no JSON object; repair or remove the line, or name a new file"
            )
        return value
