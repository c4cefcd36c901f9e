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
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from safelens.engine.ledger import Begun, Found
from safelens.engine.manifest import Entry
from safelens.engine.system import System
from safelens.pipeline import Case, Pipeline, Unsure
from safelens.verdict import Stage

_SEND_AT = 8
_SEND_AFTER_S = 1.0
_VIDEOS = pa.schema([("video", pa.binary()), ("sha256", pa.string())])
_UNSURE = _VIDEOS.append(pa.field("unsure", pa.large_binary()))
_DONE = pa.schema([("done", pa.int64())])


class LedgerClient(Protocol):
    """The ledger, in another process; see `Ledger` for what the calls do."""

    def introduce(self, provenance: str) -> None:
        """Say what the verdicts depend on."""

    def begin(self, stage: Stage, entries: Sequence[Entry]) -> Begun:
        """Ask what of some videos is to be done."""

    def again(self, stage: Stage, video: str) -> None:
        """Say that a video is tried again, alone."""

    def known(self, digests: Sequence[str]) -> list[str]:
        """Ask which digests have a verdict."""

    def add(self, stage: Stage, found: Found) -> None:
        """Send without waiting."""

    def settle(self) -> None:
        """Wait until all that was sent is on disk."""


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Videos for `ScreenStage`."""
    return pa.table(
        {"video": [os.fsencode(e.video) for e in entries], "sha256": [e.sha256 for e in entries]},
        schema=_VIDEOS,
    )


class _Stage(ABC):
    """What the stages share: which videos are done, in what company, and when the ledger hears of it."""

    name: Stage

    def __init__(self, system: System, ledger: LedgerClient) -> None:
        self._ledger = ledger
        self._lens = system.load(deliberate=self.name == "deliberate")
        ledger.introduce(self._lens.provenance.model_dump_json())

    def _cases(self, entries: Sequence[Entry]) -> Iterator[Case]:
        """The cases of what is to be done, each when it is over; the ledger has them all at the end."""
        begun = self._ledger.begin(self.name, entries)
        yield from self._run(begun.together)
        for video in begun.alone:
            self._ledger.again(self.name, video)
            yield from self._run([video])

    def _run(self, videos: list[str]) -> Iterator[Case]:
        found, sent = Found(), time.monotonic()
        for case in self._pipeline(videos):
            if case.verdict is not None:
                found.verdicts.append(case.verdict.to_json())
            elif case.known:
                found.copies.append(Entry(case.video.path, case.clip.sha256))
            else:
                found.passed_on.append(case.video.path)
            yield case
            if len(found) >= _SEND_AT or time.monotonic() - sent > _SEND_AFTER_S:
                self._ledger.add(self.name, found)
                found, sent = Found(), time.monotonic()
        self._ledger.add(self.name, found)
        self._ledger.settle()

    @abstractmethod
    def _pipeline(self, videos: list[str]) -> Iterator[Case]:
        """The stage's part of the cascade."""


class ScreenStage(_Stage):
    """Decodes and screens; decided videos go to the ledger, unsure ones on to S2."""

    name = "screen"

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """One block of videos, as `table_of` makes it; gives one table of the unsure ones."""
        entries = _entries(block)
        unsure = [
            (os.fsencode(case.video.path), case.clip.sha256, pickle.dumps(case.unsure, protocol=5))
            for case in self._cases(entries)
            if case.verdict is None and not case.known
        ]
        columns: Iterable[Any] = zip(*unsure, strict=True) if unsure else ([], [], [])
        table = pa.table(
            [pa.array(list(c), kind.type) for c, kind in zip(columns, _UNSURE, strict=True)],
            schema=_UNSURE,
        )
        yield table

    def _pipeline(self, videos: list[str]) -> Iterator[Case]:
        return Pipeline(self._lens, videos, deliberate=False, known=self._ledger.known).run()


class DeliberateStage(_Stage):
    """Continues from what S1 found; every video gets its verdict."""

    name = "deliberate"

    def __init__(self, system: System, ledger: LedgerClient) -> None:
        super().__init__(system, ledger)
        self._unsure: dict[str, bytes] = {}

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Unsure videos, as `ScreenStage` gives them; gives how many."""
        entries = _entries(block)
        values = block.column("unsure").to_pylist()
        self._unsure = {e.video: value for e, value in zip(entries, values, strict=True)}
        for _ in self._cases(entries):
            pass
        yield pa.table({"done": [len(entries)]}, schema=_DONE)

    def _pipeline(self, videos: list[str]) -> Iterator[Case]:
        # What is unpickled was pickled by ScreenStage, in this run.
        unsure: Iterator[Unsure] = (pickle.loads(self._unsure[video]) for video in videos)
        return Pipeline(self._lens, unsure).run()


def _entries(block: pa.Table) -> list[Entry]:
    videos, digests = block.column("video").to_pylist(), block.column("sha256").to_pylist()
    return [Entry(os.fsdecode(v), d) for v, d in zip(videos, digests, strict=True)]
