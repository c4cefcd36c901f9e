"""An append-only file of JSON Lines that a killed run leaves whole and the next one continues.

Knows lines, what a kill, an interrupt or a full disk does to the last one, and the card beside the file
that says how it was made. Knows nothing of what the lines mean.
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

    def ids(self) -> set[str]:
        """The `id` of every object that the file holds; read as `read` does.

        Raises:
            LogError: as `read`, or an object has no id.
        """
        found = set()
        for number, value in enumerate(self.read(), start=1):
            if not isinstance(value.get("id"), str):
                raise LogError(f"{self.path}:{number}: no id; repair or remove the line")
            found.add(value["id"])
        return found

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


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Note the settings beside `out`, in its `.run.json`, or refuse to continue under others.

    Raises:
        LogError: `out` was made with other settings or is something else, or the card cannot be
            read or written.
    """
    card = out.with_name(f"{out.name}.run.json")
    try:
        if card.exists():
            there = json.loads(card.read_text("utf-8"))
            names = {*there, *settings}
            differ = sorted(n for n in names if there.get(n) != settings.get(n))
            if differ:
                changes = "; ".join(
                    f"{n} {there.get(n)!r}, now {settings.get(n)!r}" for n in differ
                )
                raise LogError(
                    f"{out} was made with other settings ({changes}): give the same options as "
                    "then, or name a new file"
                )
        elif out.exists() and (out.is_dir() or out.stat().st_size):
            raise LogError(
                f"{out} exists and is no earlier output of this command: name a new file"
            )
        else:
            card.parent.mkdir(parents=True, exist_ok=True)
            part = card.with_name(f".{card.name}.part")
            part.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
            os.replace(part, card)
    except (OSError, ValueError, AttributeError) as error:
        raise LogError(f"{card}: cannot be read or written ({error})") from error
