"""Where videos, frames and bundles lie: a folder or any store that fsspec reaches.

Knows names, which it makes sure of, and bytes. No text of a client's ever becomes part of a path.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

_NAME = re.compile(r"(videos|frames|bundles)/[a-z0-9_]+")
_CHUNK = 1 << 18


class MediaStore:
    """Files by name, such as `videos/job_...`.

    Args:
        url: a folder, or fsspec's address.

    Raises:
        ImportError: the address needs a package that is not there, such as s3fs.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)

    def _at(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r}: no name in the media store")
        return f"{self._root}/{name}"

    def take(self, file: Path, name: str) -> None:
        """Keep a file under a name, at once and whole; the file itself is gone afterwards.

        Raises:
            OSError: it cannot be written.
        """
        target = self._at(name)
        if not self._local:
            self._fs.put_file(str(file), target)
            file.unlink()
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(file, target)
        except OSError:  # on another disk
            part = f"{target}.part"
            shutil.copyfile(file, part)
            os.replace(part, target)
            file.unlink()

    def write(self, data: bytes, name: str) -> None:
        """Keep bytes under a name, at once and whole. Raises OSError."""
        target = self._at(name)
        if not self._local:
            self._fs.pipe_file(target, data)
            return
        part = Path(f"{target}.part")
        try:
            part.write_bytes(data)
        except FileNotFoundError:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
        os.replace(part, target)

    def address(self, name: str) -> str:
        """A path, or an address that `remote_file` reads, where other machines find the file."""
        target = self._at(name)
        return target if self._local else self._fs.unstrip_protocol(target)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """The file on this machine as long as the block runs. Raises FileNotFoundError, OSError."""
        if self._local:
            yield Path(self._at(name))
            return
        with tempfile.TemporaryDirectory(prefix="safelens-") as folder:
            path = Path(folder) / "file"
            self._fs.get_file(self._at(name), str(path))
            yield path

    def size(self, name: str) -> int:
        """In bytes. Raises FileNotFoundError, OSError."""
        return int(self._fs.size(self._at(name)))

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes from `start` to before `end`. Raises FileNotFoundError, OSError."""
        return bytes(self._fs.cat_file(self._at(name), start=start, end=end))

    def stream(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The same, piece by piece."""
        with self._fs.open(self._at(name), "rb") as file:
            file.seek(start)
            while start < end and (data := file.read(min(_CHUNK, end - start))):
                start += len(data)
                yield data

    def delete(self, name: str) -> None:
        """Remove a file; that it is not there is no error. Raises OSError."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def older(self, kind: str, age_s: float) -> Iterator[str]:
        """Names of one kind that were written longer ago. Raises OSError."""
        try:
            found = self._fs.ls(f"{self._root}/{kind}", detail=True, refresh=True)
        except FileNotFoundError:
            return
        for entry in found:
            name = f"{kind}/{entry['name'].rsplit('/', 1)[-1]}"
            if _NAME.fullmatch(name) and _written(entry) < time.time() - age_s:
                yield name

    def check(self) -> None:
        """Write and remove a file. Raises OSError, or what the store's own library raises."""
        self.write(b"ok", "videos/check")
        self.delete("videos/check")


def _written(entry: dict[str, object]) -> float:
    """When, in seconds since 1970; now where the store does not say."""
    for key in ("mtime", "LastModified", "updated", "last_modified", "created"):
        value = entry.get(key)
        if isinstance(value, int | float):
            return float(value)
        if hasattr(value, "timestamp"):
            return float(value.timestamp())
    return time.time()
