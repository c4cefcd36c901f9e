"""A video by its address, such as `s3://bucket/a.mp4`, as a file here for as long as it is read.

Knows fsspec's addresses and how a failed fetch becomes a `VideoError`. Credentials and endpoints are those that
the store's own library finds in the environment, such as AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safelens.video import VideoError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_address(path: str) -> bool:
    """Whether a path is an address and no file of this machine."""
    return bool(_ADDRESS.match(path))


def missing_package(address: str) -> str | None:
    """What must be installed before such an address can be read; None where nothing is missing.

    Raises:
        ValueError: no library knows such addresses.
    """
    protocol = address.split("://", 1)[0].lower()
    try:
        from fsspec import get_filesystem_class
    except ModuleNotFoundError:
        return "fsspec"
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        return str(error)
    return None


@contextmanager
def local_file(path: str) -> Iterator[str]:
    """The file on this machine as long as the block runs: the path itself, or a copy of what an address names.

    What the block says of the copy in a `VideoError` is said of the address.

    Raises:
        VideoError: `not_found`, `no_permission` or `unreadable`: the address gives no file.
    """
    if not is_address(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="safelens-") as folder:
        file = str(Path(folder) / "video")
        _fetch(path, file)
        try:
            yield file
        except VideoError as error:
            message = error.message.replace(file, path)
            raise VideoError(error.code, message, sha256=error.sha256) from None


def _fetch(address: str, file: str) -> None:
    try:
        from fsspec.core import url_to_fs

        store, name = url_to_fs(address)
        store.get_file(name, file)
    except FileNotFoundError:
        raise VideoError("not_found", f"{address}: no such object; check the address") from None
    except PermissionError as error:
        raise VideoError(
            "no_permission", f"{address}: may not be read ({error}); check the credentials"
        ) from None
    # Each store's library has errors of its own.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise VideoError(
            "unreadable", f"{address}: could not be fetched ({reason}); check address and network"
        ) from None
