"""What writes reasoning traces, seen from the stage that checks them.

Knows the protocol and how writing may fail. Two keep it: `trace_rules` and `trace_prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from safelens.curate.trace_check import Fault
from safelens.data.records import Record


@dataclass(frozen=True)
class Attempt:
    """A text that was rejected, and why."""

    text: str
    faults: tuple[Fault, ...]


class Unanswerable(Exception):
    """A record that this generator cannot write a trace for; the message says why."""


class TraceGenerator(Protocol):
    """Writes a trace for a record; what it writes is checked by others. Entered while in use."""

    async def __aenter__(self) -> Self:
        """Make ready."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of what is held."""

    async def write(self, record: Record, rejected: Sequence[Attempt], *, fresh: bool) -> str:
        """The text for a record.

        Args:
            record: with captions and scores.
            rejected: earlier attempts at it in this run, to do better than.
            fresh: do not repeat an answer of an earlier run.

        Raises:
            Unanswerable: the record lacks what this generator needs.
            EndpointError: no text this time; the next run tries again.
            EndpointStop: no text for any record.
        """
