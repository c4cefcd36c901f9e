"""A client of the service; needs `safelens[remote]` alone.

Knows the routes, and which failures pass. Every submission has an idempotency key: what is sent twice because
an answer was lost is one job.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from safelens.verdict import Verdict

_PASSING = (408, 429, 502, 503, 504)
_WAIT_S = 30.0
_LONGEST_PAUSE_S = 60.0


class ServiceError(Exception):
    """The service did not do it.

    Attributes:
        code: of the problem document; `unreachable` where there was none.
        status: HTTP's; None where there was no answer.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ServiceClient:
    """Talks to one `safelens serve`; threads may share it. A context manager.

    Args:
        url: of the service, such as `http://localhost:8080`.
        key: an API key.
        timeout_s: for one answer.
        retries: of a request whose failure may pass.

    Example:
        with ServiceClient("http://localhost:8080", key) as client:
            job = client.submit("clip.mp4")
            verdict = client.verdict(job["id"])
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 90.0, retries: int = 5) -> None:
        self._retries = retries
        try:
            self._http = httpx2.Client(
                base_url=url.rstrip("/"),
                headers={"Authorization": f"Bearer {key}"},
                timeout=timeout_s,
            )
        except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
            raise ServiceError(
                "unreachable", f"{url!r} is no address, or the key holds what no header can"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def submit(self, video: str | Path, **options: str) -> dict[str, Any]:
        """Send a file.

        Args:
            video: its path.
            options: name, reference, callback_url, batch.

        Returns:
            The job.

        Raises:
            ServiceError: it was not accepted.
            OSError: the file cannot be read.
        """
        path = Path(video)
        query = {"name": path.name.encode("utf-8", "backslashreplace").decode()} | options
        return self._json("POST", "/v1/jobs", file=path, params=query, headers=_once())

    def submit_url(self, url: str, **options: str) -> dict[str, Any]:
        """Have a URL fetched; as `submit`."""
        return self._json("POST", "/v1/jobs", json={"url": url, **options}, headers=_once())

    def submit_batch(
        self, items: list[dict[str, str]], callback_url: str | None = None
    ) -> dict[str, Any]:
        """Have several URLs fetched, each `{"url": ..., "name": ..., "reference": ...}`. Raises ServiceError."""
        body = {"items": items, "callback_url": callback_url}
        return self._json("POST", "/v1/batches", json=body, headers=_once())

    def job(self, job: str, wait_s: float = 0.0) -> dict[str, Any]:
        """A job, at its end or after `wait_s` (at most 60) seconds. Raises ServiceError."""
        return self._json("GET", f"/v1/jobs/{job}", params={"wait": wait_s})

    def verdict(self, job: str, timeout_s: float | None = None) -> Verdict:
        """Wait for a job's verdict.

        Raises:
            ServiceError: the job was cancelled, there is none in time, or the service does not answer.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = _WAIT_S if until is None else min(_WAIT_S, until - time.monotonic())
            found = self.job(job, max(0.0, left))
            if found["verdict"] is not None:
                return Verdict.model_validate(found["verdict"])
            if found["state"] == "cancelled":
                raise ServiceError("conflict", f"{job} was cancelled")
            if left <= 0:
                raise ServiceError("too_slow", f"{job} has no verdict after {timeout_s:g} s")

    def jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """All jobs by the filters of `GET /v1/jobs`, page by page. Raises ServiceError."""
        query = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = self._json("GET", "/v1/jobs", params=query)
            yield from page["jobs"]
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def cancel(self, job: str) -> dict[str, Any]:
        """End a job without a verdict. Raises ServiceError (conflict, if it is done)."""
        return self._json("POST", f"/v1/jobs/{job}/cancel")

    def decide(
        self, job: str, kind: str, labels: list[str] | None = None, note: str | None = None
    ) -> dict[str, Any]:
        """Confirm, overturn or escalate. Raises ServiceError."""
        body = {"kind": kind, "labels": labels, "note": note}
        return self._json("POST", f"/v1/jobs/{job}/decisions", json=body)

    def deployment(self) -> dict[str, Any]:
        """What moderates now. Raises ServiceError."""
        return self._json("GET", "/v1/deployments/active")

    def records(self, policy: str | None = None) -> Iterator[str]:
        """Decisions as records, each a line of JSON. Raises ServiceError."""
        params = {} if policy is None else {"policy": policy}
        yield from self._send("GET", "/v1/records", params=params).text.splitlines()

    def media(self, job: str, into: Path) -> None:
        """Download a job's video. Raises ServiceError, OSError."""
        try:
            with (
                self._http.stream("GET", f"/v1/jobs/{job}/media") as answer,
                into.open("wb") as file,
            ):
                if answer.status_code != 200:
                    answer.read()
                    raise _error(answer)
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        except httpx2.HTTPError as error:
            raise ServiceError("unreachable", f"the download broke off ({error})") from error

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._send(method, path, **options)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServiceError(
                "unreachable", f"{answer.url}: no answer of a SafeLens service", answer.status_code
            )
        return found

    def _send(
        self, method: str, path: str, *, file: Path | None = None, **options: Any
    ) -> httpx2.Response:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                if file is None:
                    answer = self._http.request(method, path, **options)
                else:
                    with file.open("rb") as body:
                        answer = self._http.request(method, path, content=body, **options)
            except httpx2.HTTPError as error:
                if last:
                    told = str(error) or type(error).__name__
                    raise ServiceError(
                        "unreachable", f"{self._http.base_url} does not answer ({told})"
                    ) from error
                time.sleep(_pause(attempt))
                continue
            if answer.is_success:
                return answer
            if last or answer.status_code not in _PASSING:
                raise _error(answer)
            time.sleep(_pause(attempt, answer.headers))
        raise AssertionError


def _once() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def _pause(attempt: int, headers: Mapping[str, str] | None = None) -> float:
    asked = (headers or {}).get("retry-after", "")
    return min(_LONGEST_PAUSE_S, float(asked) if asked.isdigit() else 0.5 * 2.0**attempt)


def _error(answer: httpx2.Response) -> ServiceError:
    try:
        found = json.loads(answer.text)
        code, message = str(found["code"]), str(found["detail"])
        more = "; ".join(str(p.get("message")) for p in found.get("problems", []))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServiceError(
            "unreachable",
            f"{answer.url} answered with status {answer.status_code}; is it a SafeLens service?",
            answer.status_code,
        )
    return ServiceError(code, f"{message}: {more}" if more else message, answer.status_code)
