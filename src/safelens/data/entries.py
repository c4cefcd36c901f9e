"""JSON files of entries, whatever the entries are, and the videos that entries name.

Knows JSON, JSON Lines and places in them, and where a named video may lie. Knows no form of data set.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelens.data.problems import DataError


@dataclass(frozen=True)
class Entry:
    """One entry of a file.

    Attributes:
        position: counted from 1 among the entries.
        where: `file:line` in JSON Lines, `file[position]` in a JSON array.
        value: the entry; None where `error` says why it could not be read.
    """

    position: int
    where: str
    value: dict[str, Any] | None
    error: str | None = None


def iter_entries(path: Path) -> Iterator[Entry]:
    """The entries of a JSON array of objects, of a file with one object, or of JSON Lines.

    A line that is no JSON object is an Entry with an error; the lines after it are still read.

    Raises:
        DataError: the file cannot be opened, is no text, or its array is damaged.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            start = file.read(1)
            while start and start.isspace():
                start = file.read(1)
            file.seek(0)
            if start == "[":
                yield from _array(path, file.read())
                return
            position = 0
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                position += 1
                if position == 1 and line.strip() == "{":
                    yield from _array(path, line + file.read())
                    return
                yield _line(line, position, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSON"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _line(line: str, position: int, where: str) -> Entry:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Entry(position, where, None, f"not JSON ({error}); expected one object a line")
    return _entry(position, where, value)


def _array(path: Path, text: str) -> Iterator[Entry]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not JSON ({error}); if the file was cut off, fetch it again"
        ) from error
    for position, value in enumerate(values if isinstance(values, list) else [values], start=1):
        yield _entry(position, f"{path}[{position}]", value)


def _entry(position: int, where: str, value: Any) -> Entry:
    if isinstance(value, dict):
        return Entry(position, where, value)
    return Entry(position, where, None, f"found {type(value).__name__}; expected an object")


def find_video(name: str, folder: Path, root: Path | None) -> str:
    """The absolute path of a video that an entry names; it need not exist.

    Published lists name videos by where they lay on their makers' machines. So with a root, a path
    that leads nowhere is looked for by its longest ending that exists below the root.

    Args:
        name: as written in the entry.
        folder: what a relative name is relative to, without a root.
        root: where the videos are, if the user said so.
    """
    if os.path.isabs(name) and (root is None or os.path.exists(name)):
        return os.path.normpath(name)
    if root is None:
        return os.path.normpath(os.path.abspath(folder / name))
    direct = os.path.normpath(os.path.abspath(root / name))
    if not os.path.exists(direct):
        parts = [part for part in Path(name).parts if part not in ("/", "..", ".")]
        for start in range(len(parts)):
            ending = root.joinpath(*parts[start:])
            if ending.is_file():
                return os.path.normpath(os.path.abspath(ending))
    return direct
