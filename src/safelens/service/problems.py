"""What a client is told when something is wrong: problem+json (RFC 9457) with a code.

Knows the form, and every code there is. Knows nothing of HTTP frameworks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MEDIA_TYPE = "application/problem+json"

CODES: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be read"),
    "unauthorized": (401, "No valid API key"),
    "forbidden": (403, "The API key's role does not permit this"),
    "cross_site": (403, "The form did not come from the console"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "This method is not for this address"),
    "slow_upload": (408, "The upload took too long"),
    "conflict": (409, "That does not go with what is there"),
    "idempotency_conflict": (409, "The idempotency key belongs to another request"),
    "too_large": (413, "Too large"),
    "not_a_video": (415, "No video"),
    "invalid": (422, "A value is not as expected"),
    "url_refused": (422, "The address may not be used"),
    "undecided": (422, "Nothing was decided"),
    "rate_limited": (429, "Too many requests"),
    "queue_full": (429, "The queue is full"),
    "internal": (500, "The service failed"),
    "not_ready": (503, "The service is not ready"),
    "too_slow": (504, "No verdict in time"),
}
"""Code to HTTP status and title."""


class Problem(Exception):
    """A request that is not answered as it was meant.

    Args:
        code: one of `CODES`.
        detail: what was found, what is expected, what to do.
        headers: of the answer.
        more: further members of the document.
    """

    def __init__(
        self, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more

    @property
    def status(self) -> int:
        """HTTP's."""
        return CODES[self.code][0]

    def document(self) -> dict[str, Any]:
        """The body."""
        status, title = CODES[self.code]
        return {
            "type": f"urn:safelens:problem:{self.code}",
            "title": title,
            "status": status,
            "code": self.code,
            "detail": self.detail,
            **self.more,
        }


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Problems as responses of an OpenAPI document, by status.

    Args:
        codes: of `CODES`.
    """
    return {CODES[code][0]: response([code], CODES[code][1]) for code in codes}


def response(codes: Iterable[str], description: str = "A problem (RFC 9457)") -> dict[str, Any]:
    """A response of an OpenAPI document that is a problem with one of these codes."""
    properties = {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "enum": sorted(codes)},
        "detail": {"type": "string"},
    }
    schema = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}
