"""Stage 2 of Algorithm 1, line 16: rewrite each record's response as a checked reasoning trace.

Knows records, attempts, and the files that a run writes and a later one continues. Does not know
how a trace comes about (a `TraceGenerator` does) nor what makes it good (`trace_check` does).

Files: OUT holds the records with their traces, one whole line each, in the input's order; OUT's
`.rejected.jsonl` what never passed the check, with reasons and text; OUT's `.run.json` the settings.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelens.chat_errors import EndpointError, EndpointStop
from safelens.curate.trace_check import canonical, check_trace
from safelens.curate.trace_generator import (
    Attempt,
    TraceGenerator,
    Unanswerable,
)
from safelens.data.records import Record
from safelens.line_log import LineLog, claim
from safelens.policy import Policy
from safelens.prompts import deliberation_request, guardrail_answer

SCHEMA = "safelens.traces/1"
GIVE_UP_AFTER = 20
"""Records in a row without an answer, after which the endpoint counts as down."""


@dataclass
class Summary:
    """What became of the records.

    Attributes:
        written: in this run.
        earlier: written by an earlier run, and skipped.
        rejected: records in this run.
        rejected_earlier: records rejected by an earlier run, and skipped.
        rules: rule to how many of this run's rejected records broke it in their last attempt.
        left_out: reason to number of records that cannot have a trace.
        failed: records without an answer from the endpoint, tried again by the next run.
    """

    written: int = 0
    earlier: int = 0
    rejected: int = 0
    rejected_earlier: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    @property
    def complete(self) -> bool:
        """Whether every record has its trace."""
        return not (self.rejected or self.rejected_earlier or self.left_out or self.failed)


@dataclass(frozen=True)
class _Outcome:
    """How one record ended: a line for OUT, or attempts that failed, or a reason or an error."""

    record: Record
    line: str | None = None
    attempts: tuple[Attempt, ...] = ()
    left_out: str | None = None
    error: str | None = None


class TraceRun:
    """One run over a file of records.

    Args:
        out: the file to write or continue.
        policy: of captions' scores and answers.
        generator: writes the texts.
        settings: what must be alike in all runs on `out`, such as the generator's name.
        max_attempts: texts asked for per record.
        concurrency: records in work at a time.
        retry_rejected: try again what earlier runs rejected.

    Attributes:
        summary: what became of the records so far.

    Raises:
        LogError: `out` holds something else, was made with other settings, or cannot be read.
    """

    def __init__(
        self,
        out: Path,
        policy: Policy,
        generator: TraceGenerator,
        *,
        settings: dict[str, Any],
        max_attempts: int = 4,
        concurrency: int = 16,
        retry_rejected: bool = False,
    ) -> None:
        self.out = out
        self.policy = policy
        self.summary = Summary()
        self._generator = generator
        self._max_attempts = max_attempts
        self._window = max(256, 16 * concurrency)
        self._slots = asyncio.Semaphore(concurrency)
        self._say: Callable[[str], None] = lambda message: None
        self._on_done: Callable[[], None] = lambda: None
        self._failed_in_a_row = 0
        self._settings = {"schema": SCHEMA, "policy_sha256": policy.sha256} | settings
        claim(out, self._settings)
        self._written = LineLog(out)
        self._rejected = LineLog(out.with_name(f"{out.name}.rejected.jsonl"))
        done = self._written.ids()
        self._refused = self._rejected.ids() - done
        self._skip = done if retry_rejected else done | self._refused

    def run(
        self,
        records: Iterable[Record],
        *,
        say: Callable[[str], None] = lambda message: None,
        on_done: Callable[[], None] = lambda: None,
    ) -> Summary:
        """Give every record that has none yet its trace.

        Args:
            records: the input, always in the same order.
            say: told of each record that is left out, rejected or failed, by id.
            on_done: called after each record.

        Raises:
            EndpointStop: the endpoint refuses or is down.
            LogError: a file cannot be written.
            KeyboardInterrupt: passed on. In every case the files hold whole lines, and the next run
                goes on after them.
        """
        self._say, self._on_done = say, on_done
        try:
            asyncio.run(self._run(records))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._written.close()
            self._rejected.close()
        return self.summary

    async def _run(self, records: Iterable[Record]) -> None:
        # Results are settled in the input's order, so that an interrupted and continued run writes
        # the file that an uninterrupted one writes.
        waiting: deque[asyncio.Task[_Outcome]] = deque()
        async with self._generator, asyncio.TaskGroup() as group:
            for record in records:
                if record.id in self._skip:
                    self.summary.earlier += record.id not in self._refused
                    self.summary.rejected_earlier += record.id in self._refused
                    self._on_done()
                    continue
                waiting.append(group.create_task(self._trace(record)))
                while waiting and (len(waiting) >= self._window or waiting[0].done()):
                    self._settle(await waiting.popleft())
            while waiting:
                self._settle(await waiting.popleft())

    async def _trace(self, record: Record) -> _Outcome:
        async with self._slots:
            if (reason := self._unfit(record)) is not None:
                return _Outcome(record, left_out=reason)
            await asyncio.sleep(0)  # rules never wait: let Ctrl-C and the writing in
            attempts: list[Attempt] = []
            while len(attempts) < self._max_attempts:
                try:
                    text = await self._generator.write(
                        record, attempts, fresh=record.id in self._refused
                    )
                except Unanswerable as error:
                    return _Outcome(record, left_out=str(error))
                except EndpointError as error:
                    return _Outcome(record, error=str(error))
                except EndpointStop as error:
                    raise EndpointStop(f"{record.id}: {error}") from error
                response, faults = check_trace(self.policy, record, text)
                if response is not None and not faults:
                    response_text = canonical(self.policy, record, response)
                    done = record.model_copy(update={"response": response_text})
                    return _Outcome(record, line=done.to_json())
                attempts.append(Attempt(text, tuple(faults)))
            return _Outcome(record, attempts=tuple(attempts))

    def _unfit(self, record: Record) -> str | None:
        """Why a record can have no trace whoever writes it; None if it can."""
        missing = [name for name in ("captions", "scores") if not getattr(record, name)]
        if missing:
            return f"no {' and no '.join(missing)}"
        if record.undecided:
            return "undecided: nothing is flagged, and not every category was asked for"
        try:
            guardrail_answer(self.policy, record.labels)
            deliberation_request(self.policy, record.captions, record.scores)
        except ValueError as error:
            return str(error)
        return None

    def _settle(self, outcome: _Outcome) -> None:
        record, summary = outcome.record, self.summary
        self._failed_in_a_row = self._failed_in_a_row + 1 if outcome.error else 0
        if outcome.line is not None:
            self._written.add(outcome.line)
            summary.written += 1
        elif outcome.left_out is not None:
            summary.left_out[outcome.left_out] += 1
            self._say(f"left out {record.id}: {outcome.left_out}")
        elif outcome.error is not None:
            summary.failed += 1
            self._say(f"failed {record.id}: {outcome.error}")
            if self._failed_in_a_row >= GIVE_UP_AFTER:
                raise EndpointStop(
                    f"{GIVE_UP_AFTER} records in a row without an answer, the last: "
                    f"{outcome.error}\nsee to the endpoint, then give the same command again"
                )
        else:
            last = outcome.attempts[-1]
            reasons = [str(fault) for fault in last.faults]
            line = {
                "id": record.id,
                "reasons": reasons,
                "attempts": len(outcome.attempts),
                "text": last.text,
            }
            self._rejected.add(json.dumps(line, ensure_ascii=False))
            summary.rejected += 1
            summary.rules.update({fault.rule for fault in last.faults})
            self._say(f"rejected {record.id}: {'; '.join(reasons)}")
        self._on_done()


def rebased(record: Record, data: Path, out: Path) -> Record:
    """The record with its video's path relative to the folder of `out`, not of `data`."""
    here, there = data.parent.resolve(), out.parent.resolve()
    if here == there or os.path.isabs(record.video):
        return record
    return record.model_copy(update={"video": os.path.relpath(here / record.video, there)})
