"""Ctrl-C that waits until a step that belongs together is done.

Knows signals. Does not know what is interrupted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Interrupt:
    """While it is entered, Ctrl-C raises `KeyboardInterrupt` at once, but not inside `whole`."""

    def __init__(self) -> None:
        self._held = False
        self._asked = False
        self._here = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interrupt:
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._here:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if not self._held:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise a Ctrl-C that is held back."""
        if self._asked:
            raise KeyboardInterrupt

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Hold Ctrl-C back until the end of the block; it is raised there."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()
