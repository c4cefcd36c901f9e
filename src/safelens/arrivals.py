"""Things that come one by one from other threads, and are taken without waiting for the next.

Knows when something has come. Knows nothing of what comes.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Arrivals(Generic[T]):
    """A queue with one reader and any number of writers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[T] = deque()
        self._ended = False
        self._news: Future[None] = Future()

    def add(self, item: T) -> None:
        """Something has come. Raises RuntimeError after `end`."""
        with self._lock:
            if self._ended:
                raise RuntimeError("nothing is taken any more")
            self._waiting.append(item)
            self._tell()

    def end(self) -> None:
        """Nothing more will come."""
        with self._lock:
            self._ended = True
            self._tell()

    def take(self, most: int) -> list[T]:
        """What has come, oldest first."""
        with self._lock:
            found = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            if not self._waiting and not self._ended and self._news.done():
                self._news = Future()
            return found

    @property
    def over(self) -> bool:
        """Whether all was taken and nothing more will come."""
        with self._lock:
            return self._ended and not self._waiting

    @property
    def news(self) -> Future[None]:
        """Done as soon as there is something to take, or nothing more will come."""
        with self._lock:
            return self._news

    def _tell(self) -> None:
        if not self._news.done():
            self._news.set_result(None)
