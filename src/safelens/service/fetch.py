"""A video from a URL to a file.

Knows redirects, bounds of time and size, and what a server may answer. Which hosts may be asked is the matter
of `addresses`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpcore2

from safelens.service.addresses import Hosts, Refused, connections, timeouts
from safelens.service.sink import FileSink, Received, SinkError

_REDIRECTS = 5


@dataclass
class FetchError(Exception):
    """A URL that gave no video.

    Attributes:
        code: url_refused, fetch_failed, too_large, not_a_video or slow_upload.
        message: what happened and what to do.
        passing: whether it may go well another time.
    """

    code: str
    message: str
    passing: bool = False

    def __str__(self) -> str:
        return self.message


def fetch(
    url: str, into: Path, hosts: Hosts, *, most_bytes: int, total_s: float, idle_s: float
) -> Received:
    """Download a video.

    Args:
        url: http or https.
        into: the file to write; it is removed where this raises.
        hosts: that may be asked, redirects included.
        most_bytes: of the video.
        total_s: seconds for all of it.
        idle_s: seconds without a byte.

    Raises:
        FetchError: says why there is no video.
    """
    until = time.monotonic() + total_s
    with connections(hosts) as pool:
        try:
            for _ in range(_REDIRECTS + 1):
                hosts.check(url)
                with pool.stream(
                    "GET",
                    url,
                    headers={
                        "Host": _authority(url),
                        "Accept": "*/*",
                        "Accept-Encoding": "identity",
                    },
                    extensions=timeouts(idle_s),
                ) as response:
                    found = {k.lower(): v.decode("latin-1") for k, v in response.headers}
                    if response.status in (301, 302, 303, 307, 308) and b"location" in found:
                        url = urljoin(url, found[b"location"])
                        continue
                    _expect_video(response.status, found, most_bytes)
                    with FileSink(into, most_bytes) as sink:
                        for chunk in response.iter_stream():
                            sink.write(chunk)
                            if time.monotonic() > until:
                                raise SinkError(
                                    "slow_upload", f"the download took more than {total_s:g} s"
                                )
                        return sink.finish()
            raise FetchError("fetch_failed", f"more than {_REDIRECTS} redirects")
        except Refused as error:
            raise FetchError("url_refused", str(error)) from error
        except SinkError as error:
            raise FetchError(error.code, str(error)) from error
        except (OSError, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise FetchError("fetch_failed", _words(error), passing=True) from error
        except httpcore2.TimeoutException as error:
            raise FetchError(
                "fetch_failed", f"the server sent nothing for {idle_s:g} s", passing=True
            ) from error


def name_of(url: str) -> str:
    """The last part of a URL's path, or its host."""
    parts = urlsplit(url)
    return unquote(parts.path.rstrip("/").rsplit("/", 1)[-1]) or parts.hostname or url


def _expect_video(status: int, headers: dict[bytes, str], most_bytes: int) -> None:
    if status != 200:
        passing = status in (408, 425, 429) or status >= 500
        raise FetchError(
            "fetch_failed", f"the server answered with status {status}; expected 200", passing
        )
    if headers.get(b"content-encoding", "identity") != "identity":
        raise FetchError(
            "fetch_failed", "the server sent the video compressed; expected it as it is"
        )
    length = headers.get(b"content-length", "")
    if length.isdigit() and int(length) > most_bytes:
        raise FetchError("too_large", f"{length} bytes; at most {most_bytes} are taken")


def _authority(url: str) -> str:
    return urlsplit(url).netloc


def _words(error: Exception) -> str:
    return f"the server cannot be reached ({error or type(error).__name__})"
