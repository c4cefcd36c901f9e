"""Which files a command is about: files, folders, and lists on standard input.

Knows folders and lists. Does not know whether a file is a video: what reads it says so.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import typer


class UsageError(Exception):
    """A command that cannot be carried out as given; the message says what to change."""


def expand(
    paths: Iterable[str],
    *,
    null: bool = False,
    leave_out: Iterable[Path] = (),
    stdin: IO[bytes] | None = None,
) -> list[str]:
    """The files that are meant, each once, in order.

    A folder gives the files in it and below, sorted by name, without hidden ones; links to folders
    are not followed. What is named itself is always taken: if it is no video, its verdict says so.

    Args:
        paths: files, folders, and `-` for a list on standard input.
        null: that list is separated by zero bytes, not by line ends.
        leave_out: files that a folder may hold but that this run writes.
        stdin: read in place of standard input.

    Raises:
        UsageError: nothing is left, or a folder cannot be listed.
    """
    written = {os.path.realpath(p) for p in leave_out}
    found: dict[str, None] = {}
    empty: list[str] = []
    for path in _listed(paths, null, stdin):
        if not os.path.isdir(path):
            found[path] = None
            continue
        inside = [file for file in _walk(path) if os.path.realpath(file) not in written]
        found.update(dict.fromkeys(inside))
        if not inside:
            empty.append(path)
    if not found:
        places = ", ".join(empty) or "the list on standard input"
        raise UsageError(f"no files in {places}; hidden files are not taken from folders")
    for path in empty:
        typer.echo(f"note: no files in {path}", err=True)
    return list(found)


def _listed(paths: Iterable[str], null: bool, stdin: IO[bytes] | None) -> Iterator[str]:
    for path in paths:
        if path != "-":
            yield path
            continue
        data = (stdin or sys.stdin.buffer).read()
        lines = data.split(b"\0") if null else data.replace(b"\r\n", b"\n").split(b"\n")
        yield from (os.fsdecode(line) for line in lines if line)


def _walk(folder: str) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        raise UsageError(
            f"{error.filename}: cannot be listed ({error.strerror}); change its permissions, or name "
            "the files in it"
        )

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(place, name)
            if not name.startswith(".") and _is_file(path):
                yield path


def _is_file(path: str) -> bool:
    """A regular file, or a link that leads nowhere: that one gets a verdict that says so."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True
