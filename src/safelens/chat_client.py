"""A client of OpenAI-compatible chat completions that gives up neither too early nor too late.

Knows HTTP, which failures pass and which do not, and what requests cost. Knows nothing of what is asked.
The API key goes into one header and nowhere else: no message, cache file or repr holds it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from safelens.answer_cache import AnswerCache
from safelens.chat_errors import EndpointError, EndpointStop

_PASSING = frozenset({408, 409, 425, 429})
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})
_LARGEST = 8_000_000  # bytes of an answer; a longer one is none
_LONGEST_WAIT_S = 600.0
_ADVICE = {
    400: "the endpoint does not accept the request: check the model's name, and that its context holds "
    "what is asked and an answer",
    401: "the endpoint wants a key: name the environment variable that holds it",
    403: "the key does not permit this: check the environment variable that holds it, and the model's "
    "name",
    404: "nothing is there: check the base URL, which usually ends with /v1, and the model's name",
}


@dataclass
class CostReport:
    """What a run cost so far.

    Attributes:
        requests: sent, retries included.
        retries: of these.
        answers: that came from the endpoint.
        cache_hits: answers that cost nothing.
        prompt_tokens: as the endpoint counted them.
        completion_tokens: as the endpoint counted them.
        unmetered: answers without a usable count.
    """

    requests: int = 0
    retries: int = 0
    answers: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    started: float = field(default_factory=time.monotonic, repr=False)

    def summary(self, price_in: float | None, price_out: float | None) -> dict[str, Any]:
        """All of it as plain data; `cost` if both prices, of a million tokens, are given."""
        counts = {
            "requests": self.requests,
            "retries": self.retries,
            "answers": self.answers,
            "cache_hits": self.cache_hits,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "unmetered": self.unmetered,
            "seconds": round(time.monotonic() - self.started, 1),
        }
        if price_in is None or price_out is None:
            return counts
        cost = (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6
        return counts | {"cost": round(cost, 6)}


@dataclass(frozen=True)
class Reply:
    """What the model answered.

    Attributes:
        text: without its role; empty where the model refused or ran out of tokens.
        prompt_tokens: as the endpoint counted them, None where it did not.
        completion_tokens: likewise.
        seconds: from the request that was answered to its answer's end; 0 from the cache.
        finish: why the model stopped, such as "stop", or "length" where its budget was used up; None where
            the endpoint does not say.
        logprobs: each token with its log probability, if the request asked for them and the endpoint gave
            them; as it gave them, unchecked.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    finish: str | None = None
    logprobs: list[Any] | None = None


class ChatClient:
    """Asks one model at one endpoint; an async context manager.

    Args:
        base_url: of the API, such as `http://localhost:8000/v1`.
        model: as the endpoint names it.
        api_key: sent as bearer token; None sends none.
        cache: answers that are known already; None keeps none.
        concurrency: most requests at a time.
        timeout_s: for one whole answer.
        retries: of a request whose failure may pass.
        backoff_s: before the first retry; doubles with each, up to a minute, half of it by chance.

    Raises:
        EndpointStop: `base_url` or `api_key` cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        cache: AnswerCache | None,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 300.0,
        retries: int = 6,
        backoff_s: float = 1.0,
    ) -> None:
        try:
            httpx2.URL(base_url)
            parts = urlsplit(base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except (ValueError, httpx2.InvalidURL):
            usable = False
        if not usable:
            raise EndpointStop(f"base URL {base_url!r}: expected http://HOST/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query:
            raise EndpointStop(
                "the base URL holds a user, password or query; give a key in an environment variable"
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise EndpointStop(
                "the API key holds characters that no header can: check its variable"
            )
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.concurrency = concurrency
        self.report = CostReport()
        self._key = api_key
        self._cache = cache
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._slots = asyncio.Semaphore(concurrency)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(timeout_s, pool=None),
            limits=httpx2.Limits(max_connections=concurrency),
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(
        self, messages: list[dict[str, Any]], *, fresh: bool = False, **fields: Any
    ) -> Reply:
        """The model's answer, from the cache where it is known.

        Args:
            messages: of the chat, each with role and content.
            fresh: ask the endpoint even so, and keep its new answer.
            fields: further fields of the request, such as `temperature`.

        Raises:
            EndpointError: no answer after all retries, or the endpoint refuses these messages.
            EndpointStop: the endpoint refuses every request.
            OSError: the cache cannot be written.
        """
        body = {"model": self.model, "messages": messages, "stream": False} | fields
        key = "" if self._cache is None else self._cache.key(self.base_url, self.model, body)
        if self._cache is not None and not fresh and (known := self._cache.get(key)) is not None:
            self.report.cache_hits += 1
            return _reply(known, 0.0)
        async with self._slots:
            found, seconds = await self._request(body)
        self.report.answers += 1
        reply = _reply(found, seconds)
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            self.report.unmetered += 1
        else:
            self.report.prompt_tokens += reply.prompt_tokens
            self.report.completion_tokens += reply.completion_tokens
        if self._cache is not None:
            self._cache.put(key, found | {"model": self.model})
        return reply

    async def _request(self, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        why, wait = "", 0.0
        for attempt in range(self._retries + 1):
            if attempt:
                self.report.retries += 1
                pause = min(60.0, self._backoff_s * 2 ** (attempt - 1))
                await asyncio.sleep(max(wait, pause * random.uniform(0.5, 1.0)))
            wait = 0.0
            self.report.requests += 1
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, headers, data = await self._send(body)
            except TimeoutError:
                why = f"no answer within {self._timeout_s:g} s"
                continue
            except httpx2.RequestError as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
                continue
            if status == 200:
                try:
                    return _read(data), time.perf_counter() - began
                except ValueError as error:
                    why = f"not a chat completion: {error}"
                    continue
            why = f"HTTP {status}: {self._said(data)}"
            if status not in _PASSING and status < 500:
                self._refused(status, why)
            wait = _retry_after(headers.get("retry-after"))
            if wait > _LONGEST_WAIT_S:
                raise EndpointError(f"{why} (asks to wait {wait:.0f} s)")
        raise EndpointError(f"{why} ({self._retries + 1} tries)")

    async def _send(self, body: dict[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        url = f"{self.base_url}/chat/completions"
        async with self._http.stream("POST", url, json=body) as response:
            data = b""
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > _LARGEST:
                    break
            return response.status_code, response.headers, data

    def _refused(self, status: int, why: str) -> None:
        if status in _ABOUT_THE_REQUEST and self.report.answers:
            raise EndpointError(why)  # others were accepted, so it is about this one
        advice = _ADVICE.get(status, _ADVICE[404] if 300 <= status < 400 else _ADVICE[400])
        raise EndpointStop(f"{self.base_url}: {why}\n{advice}")

    def _said(self, data: bytes) -> str:
        text = " ".join(data[:2000].decode("utf-8", "replace").split())
        if self._key:
            text = text.replace(self._key, "***")
        text = "".join(char if char.isprintable() else "?" for char in text)
        return text[:300] or "(no text)"


def _read(data: bytes) -> dict[str, Any]:
    """What is kept of a chat completion, as `_reply` reads it. Raises ValueError where it is none."""
    if len(data) > _LARGEST:
        raise ValueError(f"longer than {_LARGEST} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError("no choices")
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise ValueError("a choice without a message")
    # A refusal, or reasoning that ran out of tokens, is an answer without content.
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise ValueError(f"content of type {type(content).__name__}")
    logprobs = choices[0].get("logprobs")
    return {
        # A lone surrogate is valid JSON and no valid text.
        "text": content.encode("utf-8", "replace").decode(),
        "usage": value.get("usage"),
        "finish": choices[0].get("finish_reason"),
        "logprobs": logprobs.get("content") if isinstance(logprobs, dict) else None,
    }


def _reply(found: dict[str, Any], seconds: float) -> Reply:
    usage, finish, logprobs = (found.get(name) for name in ("usage", "finish", "logprobs"))
    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        str(found["text"]),
        _count(counts, "prompt_tokens"),
        _count(counts, "completion_tokens"),
        seconds,
        finish if isinstance(finish, str) else None,
        logprobs if isinstance(logprobs, list) else None,
    )


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else None


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, in either of its forms; 0 if unreadable."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value)) if value.strip().isdigit() else _until(value)
    except (ValueError, OverflowError):
        return 0.0


def _until(date: str) -> float:
    then = parsedate_to_datetime(date)
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
