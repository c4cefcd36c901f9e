"""A pipeline without an end, in a thread of its own: whoever has a video adds it, and gets its case once it is over.

Knows threads and waiting. What is done with a video is the matter of `pipeline`; who asks, and what becomes of the
case, of `online` and `stages`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from safelens.arrivals import Arrivals
from safelens.pipeline import Case, Pipeline, Unsure

if TYPE_CHECKING:
    from safelens.cascade import SafeLens


class Running:
    """One `Pipeline` that runs as long as its process does.

    So S1's batch is what is decoded when the model is free, whoever asked for it, and S2's videos join and leave its
    slots one by one.

    Args:
        lens: decodes, screens, deliberates and decides.
        deliberate: False ends a video where S2 would begin.
        known: see `Pipeline`.
    """

    def __init__(
        self,
        lens: SafeLens,
        *,
        deliberate: bool,
        known: Callable[[str], Future[bool]] | None = None,
    ) -> None:
        self._arrivals: Arrivals[str | Unsure] = Arrivals()
        self._pipeline = Pipeline(lens, self._arrivals, deliberate=deliberate, known=known)
        self._asked: dict[str, deque[Future[Case]]] = {}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name="safelens-pipeline").start()

    def add(self, video: str | Unsure) -> Future[Case]:
        """Have a video done; any thread may ask.

        Raises:
            RuntimeError: as `check`.
        """
        path = video.video.path if isinstance(video, Unsure) else video
        answer: Future[Case] = Future()
        with self._changed:
            self.check()
            self._asked.setdefault(path, deque()).append(answer)
        self._arrivals.add(video)
        return answer

    def check(self) -> None:
        """Raises RuntimeError if the pipeline ended, which it does only when something is wrong with it."""
        if self._failure is not None:
            raise RuntimeError("the pipeline ended") from self._failure

    def wait_until_empty(self) -> None:
        """Until no video is under way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked)

    def _run(self) -> None:
        try:
            for case in self._pipeline.run():
                self._answer(case)
        except BaseException as error:
            with self._changed:
                self._failure = error
                left = [answer for answers in self._asked.values() for answer in answers]
                self._asked.clear()
                self._changed.notify_all()
            for answer in left:
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(error)

    def _answer(self, case: Case) -> None:
        path = case.video.path
        with self._changed:
            # A video that was added twice has two answers, and either is right for both.
            answer = self._asked[path].popleft()
            if not self._asked[path]:
                del self._asked[path]
            self._changed.notify_all()
        if answer.set_running_or_notify_cancel():
            answer.set_result(case)
