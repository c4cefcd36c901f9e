"""S1 and S2, each as what one process does with a block of videos.

Knows the ledger and the cascade's pipeline, which is the local engine's too. Blocks are Arrow tables, as Ray Data
passes them; it knows nothing else of Ray.

    blocks of paths ── ScreenStage ──▶ unsure videos: frames and scores ── DeliberateStage
                            │                                                     │
                            └───── verdicts ────────▶ ledger ◀────────────────────┘

What is passed on is the decoded frames and S1's numbers, not S1's cache: see docs/architecture.md.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

import pyarrow as pa

from safelens.engine.ledger import Begun, Found
from safelens.engine.manifest import Entry
from safelens.engine.mapping import blocks_of
from safelens.engine.running import Running
from safelens.engine.system import System
from safelens.pipeline import AHEAD, Case, Unsure
from safelens.verdict import Stage

_SEND_AT = 8
_SEND_AFTER_S = 1.0
_VIDEOS = pa.schema([("video", pa.binary()), ("sha256", pa.string())])
_UNSURE = _VIDEOS.append(pa.field("unsure", pa.large_binary()))
_DONE = pa.schema([("done", pa.int64())])


class LedgerClient(Protocol):
    """The ledger, in another process; see `Ledger` for what the calls do. Any thread may call."""

    def introduce(self, provenance: str) -> None:
        """Say what the verdicts depend on."""

    def begin(self, stage: Stage, entries: Sequence[Entry]) -> Begun:
        """Ask what of some videos is to be done."""

    def again(self, stage: Stage, video: str) -> None:
        """Say that a video is tried again, alone."""

    def known(self, digest: str) -> Future[bool]:
        """Ask, without waiting, whether a digest has a verdict."""

    def add(self, stage: Stage, found: Found) -> Any:
        """Send without waiting; gives what `settle` takes."""

    def settle(self, sent: Sequence[Any]) -> None:
        """Wait until what was sent is on disk."""


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Videos for `ScreenStage`."""
    return pa.table(
        {"video": [os.fsencode(e.video) for e in entries], "sha256": [e.sha256 for e in entries]},
        schema=_VIDEOS,
    )


class _Stage:
    """What the stages share: which videos are done, in what company, and when the ledger hears of it.

    Blocks may come while others are under way, from threads of their own: the pipeline then has the next block's
    videos before this one's are over, and does not run empty in between.
    """

    name: Stage

    def __init__(self, system: System, ledger: LedgerClient) -> None:
        self._ledger = ledger
        screens = self.name == "screen"
        lens = system.load(deliberate=not screens)
        ledger.introduce(lens.provenance.model_dump_json())
        known = ledger.known if screens else None
        self._running = Running(lens, deliberate=not screens, known=known)
        self._begins = threading.Lock()
        """Whose holder alone may begin videos."""

    def _cases(
        self, entries: Sequence[Entry], video: Callable[[str], str | Unsure]
    ) -> Iterator[Case]:
        """The cases of what is to be done, each when it is over; the ledger has them all at the end.

        Args:
            entries: of a block.
            video: from a name to what the pipeline takes.
        """
        news = _News(self.name, self._ledger)
        over: SimpleQueue[Future[Case]] = SimpleQueue()
        left, alone = 0, list[str]()
        # A process that dies makes suspects of all that it has begun, so no more is begun than keeps it busy.
        for part in blocks_of(entries, AHEAD):
            with self._begins:
                begun = self._ledger.begin(self.name, part)
                for name in begun.together:
                    self._running.add(video(name)).add_done_callback(over.put)
            alone += begun.alone
            left += len(begun.together)
            while left > (0 if part[-1] is entries[-1] else AHEAD):
                case = over.get().result()
                news.add(case)
                yield case
                left -= 1
        news.settle()
        for name in alone:
            # Until the ledger has it: the next process that dies must not count against this video.
            with self._begins:
                self._running.wait_until_empty()
                self._ledger.again(self.name, name)
                case = self._running.add(video(name)).result()
                news.add(case)
                news.settle()
            yield case


class _News:
    """What a block's cases came to, sent to the ledger now and then."""

    def __init__(self, stage: Stage, ledger: LedgerClient) -> None:
        self._stage, self._ledger = stage, ledger
        self._found, self._since = Found(), time.monotonic()
        self._sent: list[Any] = []

    def add(self, case: Case) -> None:
        found = self._found
        if case.verdict is not None:
            found.verdicts.append(case.verdict.to_json())
        elif case.known:
            found.copies.append(Entry(case.video.path, case.clip.sha256))
        else:
            found.passed_on.append(case.video.path)
        if len(found) >= _SEND_AT or time.monotonic() - self._since > _SEND_AFTER_S:
            self._send()

    def settle(self) -> None:
        """Returns when all is on disk."""
        if len(self._found):
            self._send()
        self._ledger.settle(self._sent)
        self._sent.clear()

    def _send(self) -> None:
        self._sent.append(self._ledger.add(self._stage, self._found))
        self._found, self._since = Found(), time.monotonic()


class ScreenStage(_Stage):
    """Decodes and screens; decided videos go to the ledger, unsure ones on to S2."""

    name = "screen"

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """One block of videos, as `table_of` makes it; gives one table of the unsure ones."""
        unsure = [
            (os.fsencode(case.video.path), case.clip.sha256, pickle.dumps(case.unsure, protocol=5))
            for case in self._cases(_entries(block), str)
            if case.verdict is None and not case.known
        ]
        columns: Iterable[Any] = zip(*unsure, strict=True) if unsure else ([], [], [])
        table = pa.table(
            [pa.array(list(c), kind.type) for c, kind in zip(columns, _UNSURE, strict=True)],
            schema=_UNSURE,
        )
        yield table


class DeliberateStage(_Stage):
    """Continues from what S1 found; every video gets its verdict."""

    name = "deliberate"

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Unsure videos, as `ScreenStage` gives them; gives how many."""
        entries = _entries(block)
        values = block.column("unsure").to_pylist()
        unsure = {e.video: value for e, value in zip(entries, values, strict=True)}

        def video(name: str) -> Unsure:
            # What is unpickled was pickled by ScreenStage, in this run.
            found: Unsure = pickle.loads(unsure[name])
            return found

        for _ in self._cases(entries, video):
            pass
        yield pa.table({"done": [len(entries)]}, schema=_DONE)


def _entries(block: pa.Table) -> list[Entry]:
    videos, digests = block.column("video").to_pylist(), block.column("sha256").to_pylist()
    return [Entry(os.fsdecode(v), d) for v, d in zip(videos, digests, strict=True)]
