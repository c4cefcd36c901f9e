"""Manifests: which videos are to be moderated, as JSON Lines, CSV or Parquet.

Knows the columns `video` and, where given, `sha256`, and names file and line of whatever is wrong. Opens no video.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safelens.remote_file import is_address, local_file
from safelens.video import VideoError

SUFFIXES = (".jsonl", ".csv", ".parquet")
"""Endings by which a manifest is told from a video."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names file and line."""


class Entry(NamedTuple):
    """A video that is asked for.

    Attributes:
        video: path or address.
        sha256: of its bytes, lower-case hex, where the manifest says; then this, and not the path, tells
            whether it has a verdict.
    """

    video: str
    sha256: str | None = None


def is_manifest(path: str) -> bool:
    """Whether a path is a manifest's, by its ending."""
    return path.lower().endswith(SUFFIXES)


def read_manifest(path: str) -> list[Entry]:
    """All entries of a manifest, in order.

    A video is an absolute path, an address such as `s3://bucket/a.mp4`, or relative to the manifest's folder.

    Args:
        path: a file or an address that ends in `.jsonl`, `.csv` or `.parquet`.

    Raises:
        ManifestError: it cannot be read, or a line holds no video.
    """
    read = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    kind = next(suffix for suffix in SUFFIXES if path.lower().endswith(suffix))
    try:
        with local_file(path) as file:
            return [
                _entry(path, place, video, sha256)
                for place, video, sha256 in read[kind](path, file)
            ]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"{path}: cannot be read ({reason})") from error
    except VideoError as error:
        raise ManifestError(error.message) from error


def merged(entries: Iterable[Entry]) -> list[Entry]:
    """Each video once, in order.

    Raises:
        ManifestError: a video is listed with two digests.
    """
    found: dict[str, str | None] = {}
    for video, sha256 in entries:
        known = found.setdefault(video, sha256)
        if sha256 is not None and known != sha256:
            if known is not None:
                raise ManifestError(
                    f"{video}: is listed with two digests ({known} and {sha256}); leave one"
                )
            found[video] = sha256
    return [Entry(*item) for item in found.items()]


_Row = tuple[str, Any, Any]
"""Where it stands, the video, its digest."""


def _json_lines(name: str, file: str) -> Iterator[_Row]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{name}:{number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ManifestError(f"{place}: no JSON ({error})") from error
            if not isinstance(value, dict) or "video" not in value:
                raise ManifestError(
                    f'{place}: expected an object with "video", such as {{"video": "a.mp4"}}'
                )
            yield place, value["video"], value.get("sha256")


def _csv(name: str, file: str) -> Iterator[_Row]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            header = rows.fieldnames or []
            if "video" not in header:
                raise ManifestError(
                    f"{name}:1: no column video; the header says {', '.join(header) or 'nothing'}"
                )
            for row in rows:
                yield f"{name}:{rows.line_num}", row["video"], row.get("sha256")
        except csv.Error as error:
            raise ManifestError(f"{name}:{rows.reader.line_num}: no CSV ({error})") from error


def _parquet(name: str, file: str) -> Iterator[_Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        source = ParquetFile(file)
        names = source.schema_arrow.names
        if "video" not in names:
            raise ManifestError(f"{name}: no column video; its columns are {', '.join(names)}")
        columns = [column for column in ("video", "sha256") if column in names]
        number = 0
        for batch in source.iter_batches(columns=columns):
            values = batch.to_pydict()
            digests = values.get("sha256") or [None] * batch.num_rows
            for video, sha256 in zip(values["video"], digests, strict=True):
                number += 1
                yield f"{name}: row {number}", video, sha256
    except pyarrow.ArrowException as error:
        raise ManifestError(f"{name}: no Parquet ({error})") from error


def _entry(manifest: str, place: str, video: Any, sha256: Any) -> Entry:
    if not isinstance(video, str) or not video:
        raise ManifestError(f"{place}: video is {video!r}; expected a path or an address")
    if sha256 in (None, ""):
        return Entry(_resolved(manifest, video))
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256.lower()):
        raise ManifestError(f"{place}: sha256 is {sha256!r}; expected 64 hexadecimal digits")
    return Entry(_resolved(manifest, video), sha256.lower())


def _resolved(manifest: str, video: str) -> str:
    if is_address(video) or os.path.isabs(video):
        return video
    if is_address(manifest):
        return posixpath.join(posixpath.dirname(manifest), video)
    return str(Path(manifest).parent / video)
