"""Moderation on a service, in the place of models on this machine: paths in, verdicts out, in order.

Knows how many files are under way, and that whatever goes wrong with one becomes its verdict.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from safelens.cascade import Moderation
from safelens.service.client import ServiceClient, ServiceError
from safelens.verdict import ErrorInfo, Provenance, Verdict

UNDER_WAY = 16
_ABOUT_THE_VIDEO = ("too_large", "not_a_video")


class RemoteLens:
    """`SafeLens.moderate_many` by a service. A context manager.

    Args:
        client: of the service; it is closed at the end.

    Raises:
        ServiceError: the service does not answer, or not with this key.

    Attributes:
        provenance: what the service's verdicts depend on now.
    """

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self.provenance = Provenance.model_validate(client.deployment()["provenance"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def moderate_many(self, paths: Iterable[str | Path]) -> Iterator[Moderation]:
        """Moderate videos in order; a few are on their way at a time."""
        pool = ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="safelens-upload")
        waiting: deque[Future[Verdict]] = deque()
        try:
            for path in paths:
                waiting.append(pool.submit(self._moderate, str(path)))
                if len(waiting) == UNDER_WAY:
                    yield Moderation(waiting.popleft().result(), None)
            while waiting:
                yield Moderation(waiting.popleft().result(), None)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _moderate(self, path: str) -> Verdict:
        try:
            job = self._client.submit(path)
            verdict = self._client.verdict(job["id"])
        except FileNotFoundError:
            return self._failed(path, "video_error", "not_found", "no such file; check the path")
        except OSError as error:
            return self._failed(path, "video_error", "unreadable", f"cannot be read ({error})")
        except ServiceError as error:
            about = error.code in _ABOUT_THE_VIDEO
            status: Literal["video_error", "model_error"] = (
                "video_error" if about else "model_error"
            )
            return self._failed(path, status, error.code, str(error))
        known = path.encode("utf-8", "backslashreplace").decode()
        return verdict.model_copy(update={"video": known})

    def _failed(
        self, path: str, status: Literal["video_error", "model_error"], code: str, message: str
    ) -> Verdict:
        error = ErrorInfo(code=code, message=f"{path}: {message}")
        return Verdict(video=path, status=status, error=error, provenance=self.provenance)
