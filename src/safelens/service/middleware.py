"""Around every request: how much and how long it may send, what is logged and counted, headers of every answer.

Knows ASGI. Knows nothing of routes but the bound on their bodies.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelens.service import metrics

log = logging.getLogger("safelens.service.requests")

_USUAL_BODY = 1_000_000
MODERATION_BODY = 32_000_000
"""Most bytes of a request whose videos are `data:` URLs, which are held in memory."""
_FORM = 100_000
"""Bytes that a form adds to its file."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"referrer-policy", b"no-referrer"),
]


class Surroundings:
    """ASGI middleware.

    Args:
        app: what answers.
        upload_bytes: largest video or bundle.
        upload_s: seconds that a body may take.
        idle_s: seconds without a byte of it.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int, upload_s: float, idle_s: float) -> None:
        self._app = app
        self._upload_bytes = upload_bytes
        self._upload_s = upload_s
        self._idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, request_id = time.perf_counter(), 500, uuid.uuid4().hex[:16]

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                here = {name.lower() for name, _ in message["headers"]}
                added = [(n, v) for n, v in _HEADERS if n not in here]
                message["headers"] = [
                    *message["headers"], *added, (b"x-request-id", request_id.encode()),
                ]  # fmt: skip
            await send(message)

        try:
            await self._app(scope, self._bounded(scope, receive), answer)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "unknown")
            metrics.REQUESTS.labels(route, scope["method"], str(status)).observe(seconds)
            log.info(
                "request",
                extra={
                    "request": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(1000 * seconds, 1),
                    "key": scope.get("state", {}).get("key"),
                },
            )

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        most, until, size, whole = self._most(scope), time.monotonic() + self._upload_s, 0, False

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            pause = min(self._idle_s, until - time.monotonic())
            try:
                async with asyncio.timeout(max(pause, 0.0)):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"nothing came for {self._idle_s:g} s, or not all within {self._upload_s:g} s",
                ) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > most:
                raise HTTPException(413, f"more than {most} bytes; expected at most that")
            return message

        return bounded

    def _most(self, scope: Scope) -> int:
        path = scope["path"]
        if path in ("/v1/jobs", "/v1/bundles"):
            return self._upload_bytes + _FORM
        return MODERATION_BODY if path == "/v1/moderations" else _USUAL_BODY
