"""How often a key may ask: at most so many requests in any minute, counted in this process's memory.

Knows times. It starts no thread and takes no lock, since it stands before every answer: it is for one event loop.
"""

from __future__ import annotations

from collections import deque
from time import monotonic

_WINDOW_S = 60.0


class RateLimit:
    """A moving window for each key.

    Args:
        most: requests of one key in a minute.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: dict[str, deque[float]] = {}

    def hit(self, key: str) -> float:
        """Count a request; where it is one too many, it is not counted, and the seconds to wait are given, else 0."""
        now = monotonic()
        times = self._times.setdefault(key, deque())
        while times and times[0] <= now - _WINDOW_S:
            times.popleft()
        if len(times) >= self._most:
            return times[0] + _WINDOW_S - now
        times.append(now)
        return 0.0
