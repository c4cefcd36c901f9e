"""A chat client for threads that wait for its answers.

Knows threads and the event loop. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelens.chat_client import ChatClient, Reply


class ChatThread:
    """Asks from any number of threads; the client's event loop runs in a thread of its own.

    Args:
        client: asks; its concurrency bounds the requests, and who comes beyond that waits.
    """

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._closing: asyncio.Event

    def ask(self, messages: list[dict[str, Any]], **fields: Any) -> Reply:
        """As `ChatClient.ask`, and waits for the answer."""
        with self._lock:
            if self._thread is None:
                self._start()
        future = asyncio.run_coroutine_threadsafe(self._client.ask(messages, **fields), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted thread no longer waits for the answer
            raise

    def close(self) -> None:
        """End the connections; who still waits gets no answer."""
        with self._lock:
            if self._thread is not None:
                self._loop.call_soon_threadsafe(self._closing.set)
                self._thread.join()
                self._thread = None

    def _start(self) -> None:
        ready: Future[None] = Future()
        # A daemon, so that a system that nobody closed does not keep the process alive.
        thread = threading.Thread(
            target=self._run, args=(ready,), name="safelens-chat", daemon=True
        )
        thread.start()
        ready.result()
        self._thread = thread

    def _run(self, ready: Future[None]) -> None:
        try:
            asyncio.run(self._live(ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _live(self, ready: Future[None]) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        async with self._client:
            ready.set_result(None)
            await self._closing.wait()
