"""What is done, under way and set aside: the one writer of a run, which all stages ask and tell.

Knows videos, verdicts and how often a process died on one. Knows neither models nor Ray; the engine makes it
an actor. A stage asks `begin` before it works and sends what it found at once, so a process that is killed loses
what it was working on and nothing else, and what is sent twice is written once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from safelens.engine.manifest import Entry
from safelens.engine.verdicts import Form, VerdictFolder, escaped
from safelens.line_log import LineLog, LogError
from safelens.verdict import ErrorInfo, Provenance, Stage, Verdict

MOST_TRIES = 3
"""Processes that may die on a video before it is set aside; but for the first, each had it alone."""


class Begun(NamedTuple):
    """What of some videos is to be done.

    Attributes:
        together: in any batches.
        alone: each by itself, after `Ledger.again`: a process died that had it among others.
    """

    together: list[str]
    alone: list[str]


@dataclass
class Found:
    """What a stage has found.

    Attributes:
        verdicts: as JSON.
        copies: videos whose bytes have a verdict.
        passed_on: videos that S1 leaves to S2.
    """

    verdicts: list[str] = field(default_factory=list)
    copies: list[Entry] = field(default_factory=list)
    passed_on: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.verdicts) + len(self.copies) + len(self.passed_on)


class Ledger:
    """The state of a run in one folder.

    Args:
        folder: of verdicts.
        form: of its shards.

    Raises:
        LogError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, form: Form = "jsonl") -> None:
        self._verdicts = VerdictFolder(folder, form=form)
        self._retries = LineLog(folder / "retries.jsonl")
        self._tries: dict[tuple[str, str], int] = {}
        self._asked: dict[str, str] = {}
        """Digests that the manifest gives, of videos that were begun."""
        self._card = folder / "provenance.json"
        """For the next process that is this ledger, should this one be killed."""
        self._provenance: Provenance | None = None
        if self._card.exists():
            self._provenance = Provenance.model_validate_json(self._card.read_bytes())
        for line in self._retries.read():
            self._tries[line["stage"], line["video"]] = line["tries"]

    def introduce(self, provenance: str) -> None:
        """A process says what its verdicts depend on, as JSON; called by each before it works.

        Raises:
            LogError: it is something else than the other verdicts depend on.
        """
        found = Provenance.model_validate_json(provenance)
        self._verdicts.claim(found)
        if found != self._provenance:
            part = self._card.with_suffix(".part")
            part.write_text(provenance, "utf-8")
            part.replace(self._card)
            self._provenance = found

    def forget_failed(self) -> None:
        """Videos that were set aside are missing again, and no suspects any more. Raises LogError."""
        self._verdicts.forget_failed()
        self._retries.close()
        self._retries.path.unlink(missing_ok=True)
        self._retries = LineLog(self._retries.path)
        self._tries.clear()

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those without a verdict."""
        return [entry for entry in entries if not self._verdicts.knows(entry)]

    def begin(self, stage: Stage, entries: Sequence[Entry]) -> Begun:
        """A process is about to work on some videos; what has a verdict is left out.

        A video on which too many processes have died gets a verdict that says so.
        """
        found = Begun([], [])
        for entry in self.missing(entries):
            video = escaped(entry.video)
            tries = self._tries.get((stage, video), 0)
            if tries >= MOST_TRIES:
                self._set_aside(stage, entry, tries)
                continue
            if entry.sha256 is not None:
                self._asked.setdefault(video, entry.sha256)
            if tries:
                found.alone.append(entry.video)
            else:
                found.together.append(entry.video)
                self._tries[stage, video] = 1
        return found

    def again(self, stage: Stage, video: str) -> None:
        """A process is about to work on a video alone on which another one died."""
        name = escaped(video)
        self._tries[stage, name] = self._tries.get((stage, name), 1) + 1
        line = {"stage": stage, "video": name, "tries": self._tries[stage, name]}
        self._retries.add(json.dumps(line))

    def known(self, digest: str) -> bool:
        """Whether bytes of this SHA-256 have a verdict."""
        return self._verdicts.known(digest)

    def add(self, stage: Stage, found: Found) -> None:
        """What a process that runs a stage has found; it is on disk when this returns.

        Raises:
            LogError: it cannot be written.
        """
        for line in found.verdicts:
            self._ended(stage, self._verdicts.add(line, self._asked))
        for copy in found.copies:
            self._verdicts.add_copy(copy.video, copy.sha256)
            self._ended(stage, copy.video)
        for video in found.passed_on:
            name = escaped(video)
            if self._tries.pop((stage, name), 0) > 1:
                # It has no verdict yet, and another ledger would hold its tries against it.
                self._retries.add(json.dumps({"stage": stage, "video": name, "tries": 0}))

    def outcomes(self) -> dict[str, int]:
        """Verdicts by what they say."""
        return dict(+self._verdicts.outcomes)

    def close(self) -> None:
        """Finish the files."""
        self._verdicts.close()
        self._retries.close()

    def _ended(self, stage: Stage, video: str) -> None:
        self._tries.pop((stage, escaped(video)), None)
        self._asked.pop(escaped(video), None)

    def _set_aside(self, stage: Stage, entry: Entry, tries: int) -> None:
        if self._provenance is None:
            raise LogError("the ledger was asked for work before anyone introduced themselves")
        work = "screened" if stage == "screen" else "deliberated on"
        verdict = Verdict(
            video=entry.video,
            sha256=entry.sha256,
            status="model_error",
            error=ErrorInfo(
                code="worker_died",
                message=f"{entry.video}: the process that {work} it died {tries} times, the last "
                f"{tries - 1} with this video alone, so it was set aside. Look into the node's log for the "
                "reason, often memory; --resume tries it again",
            ),
            provenance=self._provenance,
        )
        self._verdicts.add(verdict.to_json(), self._asked)
        self._ended(stage, entry.video)
