"""Many videos through the cascade at once: which is decoded, screened and deliberated when.

Knows order, batches and bounds. What a stage does, and what is decided, is the matter of `cascade`.

S1 and S2 share one model, so only one of them runs at a time. S2 is bound by reading the weights, once for
all videos that it is writing about: so as long as it has room for more, and videos are waiting, S1 goes first.
Where S2 is on a server, S1 always does.

An engine may run the stages in processes of their own: one pipeline then ends where S2 would begin, and
another takes `Unsure` videos up in place of paths. A pipeline that serves requests takes them from `Arrivals`, and
gives each back when it is over.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelens.arrivals import Arrivals
from safelens.outcome import Decoded
from safelens.verdict import Caption, Verdict
from safelens.video import Clip

if TYPE_CHECKING:
    from safelens.cascade import SafeLens, UnderWay
    from safelens.screen import Finding, Screened
    from safelens.vlm_cost import Spent

BATCH = 8
"""Most videos that are screened together."""
UNDER_WAY = 4 * BATCH
"""Most videos between their path and their verdict; a third of them fills S2's slots."""
AHEAD = 2 * BATCH
"""Most videos that are decoded and not yet screened."""


@dataclass(frozen=True)
class Unsure:
    """A video that S1 leaves to S2 in another process: its frames and what S1 found."""

    video: Decoded
    finding: Finding


@dataclass
class Case:
    """A video on its way to a verdict.

    Attributes:
        decoding: becomes the video.
        ready: comes once it is decoded, and says whether a verdict on the same bytes is there already.
        finding: what S1 found in another process.
        s1: what S1 found, where S2 is to be asked.
        captions: one a frame, for S2.
        spent: what the video is charged, where S2 is asked.
        verdict: what came of it.
    """

    decoding: Future[Decoded]
    ready: Future[bool]
    finding: Finding | None = None
    s1: Screened | None = None
    captions: tuple[Caption, ...] = ()
    spent: list[Spent] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def video(self) -> Decoded:
        """What was decoded; waits for it."""
        return self.decoding.result()

    @property
    def known(self) -> bool:
        """Whether a verdict on the same bytes is there already, and none is made; waits for the answer."""
        return self.ready.result()

    @property
    def clip(self) -> Clip:
        """Its frames, which it must have."""
        clip = self.video.clip
        assert clip is not None
        return clip

    @property
    def screened(self) -> Screened:
        """What S1 found, where S2 is asked."""
        assert self.s1 is not None
        return self.s1

    @property
    def unsure(self) -> Unsure:
        """What S2 in another process needs."""
        return Unsure(self.video, self.screened.finding)


class Pipeline:
    """One run over some videos.

    Args:
        cascade: decodes, screens, deliberates and decides.
        videos: taken one by one, as there is room for them; from `Arrivals` what has come, until that ends.
        deliberate: False ends a video where S2 would begin; it then has `Case.s1` and no verdict.
        known: whether a verdict is there already on bytes of this SHA-256, and none is needed; asked from a thread that
            decodes, once for each video, so that the models do not wait for the answer.
    """

    def __init__(
        self,
        cascade: SafeLens,
        videos: Iterable[str | Path | Unsure] | Arrivals[str | Unsure],
        *,
        deliberate: bool = True,
        known: Callable[[str], Future[bool]] | None = None,
    ) -> None:
        self._cascade = cascade
        self._arrivals = videos if isinstance(videos, Arrivals) else None
        self._videos = iter(() if isinstance(videos, Arrivals) else videos)
        self._known = known
        self._order: deque[Case] = deque()
        self._unread: list[Case] = []
        """Not yet screened, in order."""
        self._unsure: deque[Case] = deque()
        """For S2, not yet begun."""
        self._deliberations = cascade.deliberations() if deliberate else None

    def run(self) -> Iterator[Case]:
        """Videos with their verdicts, in order; a slow one holds up those behind it, and none before it.

        Those of `Arrivals` in the order in which they are over.
        """
        try:
            while True:
                for video in self._taken():
                    case = self._case(video)
                    self._order.append(case)
                    self._unread.append(case)
                if not self._order and (self._arrivals is None or self._arrivals.over):
                    return
                if (ended := self._ended()) is not None:
                    yield ended
                elif not self._work():
                    wait(self._awaited(), return_when=FIRST_COMPLETED)
        finally:
            left = [case.decoding for case in self._order]
            for future in left:
                future.cancel()
            wait(left)

    @property
    def _room(self) -> int:
        return max(0, min(UNDER_WAY - len(self._order), AHEAD - len(self._unread)))

    def _taken(self) -> Iterable[str | Path | Unsure]:
        if self._arrivals is not None:
            return self._arrivals.take(self._room)
        return itertools.islice(self._videos, self._room)

    def _awaited(self) -> list[Future[Any]]:
        """What there is to wait for where the models have nothing to do."""
        found: list[Future[Any]] = [case.ready for case in self._unread]
        if self._arrivals is not None and self._room and not self._arrivals.over:
            found.append(self._arrivals.news)
        return found

    def _ended(self) -> Case | None:
        """A video that is over and may be given."""
        may = itertools.islice(self._order, 1) if self._arrivals is None else self._order
        found = next((case for case in may if self._over(case)), None)
        if found is not None:
            self._order.remove(found)
        return found

    def _case(self, video: str | Path | Unsure) -> Case:
        if isinstance(video, Unsure):
            there: Future[Decoded] = Future()
            there.set_result(video.video)
            case = Case(there, Future(), video.finding)
        else:
            case = Case(self._cascade.decoding(str(video)), Future())
        case.decoding.add_done_callback(partial(self._ask, case.ready))
        return case

    def _ask(self, answer: Future[bool], decoding: Future[Decoded]) -> None:
        if decoding.cancelled():
            answer.cancel()
            return
        try:
            clip = decoding.result().clip
            if self._known is None or clip is None:
                answer.set_result(False)
            else:
                self._known(clip.sha256).add_done_callback(partial(_copy, answer))
        except BaseException as error:
            answer.set_exception(error)

    def _over(self, case: Case) -> bool:
        screened = self._deliberations is None and case.s1 is not None
        return screened or case.verdict is not None or (case.ready.done() and case.known)

    def _work(self) -> bool:
        """Whatever the models can do now; False where all depends on videos that are still being decoded."""
        under_way = self._deliberations
        if under_way is None:
            batch = self._decoded()
            self._screen(batch)
            return bool(batch)
        if self._unsure and under_way.free:
            count = min(under_way.free, len(self._unsure))
            self._cascade.begin([self._unsure.popleft() for _ in range(count)], under_way)
        elif self._may_screen(under_way) and (batch := self._decoded()):
            self._screen(batch)
        elif len(under_way):
            for ended in under_way.step():
                self._cascade.conclude(ended)
        else:
            return False
        return True

    def _may_screen(self, under_way: UnderWay) -> bool:
        return not under_way.here or not len(under_way) or under_way.free > 0

    def _decoded(self) -> list[Case]:
        """The oldest video that is decoded, and others that are most like it in length."""
        ready = [case for case in self._unread if case.ready.done()]
        if not ready:
            return []

        def unlike(case: Case) -> int:
            lengths = [
                0 if c.video.clip is None else len(c.video.clip.frames) for c in (case, ready[0])
            ]
            return abs(lengths[0] - lengths[1])

        return sorted(ready, key=unlike)[:BATCH]

    def _screen(self, batch: list[Case]) -> None:
        self._unread = [case for case in self._unread if case not in batch]
        readable = []
        for case in batch:
            if case.known:
                continue
            if case.video.clip is None:
                case.verdict = self._cascade.unreadable(case.video)
            else:
                readable.append(case)
        if readable:
            self._cascade.screen(readable)
        if self._deliberations is not None:
            self._unsure.extend(case for case in readable if case.verdict is None)


def _copy(answer: Future[bool], found: Future[bool]) -> None:
    try:
        answer.set_result(found.result())
    except BaseException as error:
        answer.set_exception(error)
