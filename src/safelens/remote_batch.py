"""Videos that a server deliberates on at the same time, seen as `vlm_decoding` shows those deliberated here.

Knows threads that wait. What is asked is the matter of `remote_deliberate`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Generic, TypeVar

from safelens.remote_deliberate import RemoteDeliberator
from safelens.verdict import Caption
from safelens.video import Clip

if TYPE_CHECKING:
    from safelens.deliberate import Deliberated
    from safelens.vlm_decoding import Finished

LOOK_S = 0.1
"""How long to wait for a server at most before looking whether other work has come up."""

Key = TypeVar("Key")


class RemoteBatch(Generic[Key]):
    """Requests under way, at most as many as the server takes at a time.

    Args:
        deliberator: asks.

    Attributes:
        here: whether deliberating takes this machine, so that screening has to wait for it.
    """

    here = False

    def __init__(self, deliberator: RemoteDeliberator) -> None:
        self._deliberator = deliberator
        self._threads = ThreadPoolExecutor(
            deliberator.concurrency, thread_name_prefix="safelens-remote"
        )
        self._waiting: set[Future[Finished[Key, Deliberated]]] = set()

    def __len__(self) -> int:
        """Videos under way, those that :meth:`step` has yet to give back included."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """How many videos can be admitted now."""
        return self._deliberator.concurrency - sum(not future.done() for future in self._waiting)

    def admit(
        self, key: Key, clip: Clip, captions: Sequence[Caption], scores: Mapping[str, float]
    ) -> None:
        """Ask about a video, and wait for nothing.

        Args:
            key: whatever tells it from others.
            clip: gives the frames.
            captions: one a frame.
            scores: S1's probability of each label.

        Raises:
            ValueError: as many as the server takes are under way.
        """
        if not self.free:
            raise ValueError(f"all {len(self)} requests are under way")
        self._waiting.add(self._threads.submit(self._ask, key, clip, captions, scores))

    def step(self) -> list[Finished[Key, Deliberated]]:
        """The videos that have ended, or failed, since the last call; waits for one, but not long."""
        done, self._waiting = wait(self._waiting, timeout=LOOK_S, return_when=FIRST_COMPLETED)
        return [future.result() for future in done]

    def _ask(
        self, key: Key, clip: Clip, captions: Sequence[Caption], scores: Mapping[str, float]
    ) -> Finished[Key, Deliberated]:
        began = time.perf_counter()
        from safelens.vlm_decoding import Finished

        result: Deliberated | None = None
        error: Exception | None = None
        try:
            result = self._deliberator.deliberate(clip, captions, scores)
        except Exception as failure:
            error = failure
        return Finished(key, result, error, time.perf_counter() - began)
