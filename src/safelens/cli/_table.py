"""Verdicts as a table on a terminal: one row a video.

Knows columns and colours. Knows nothing of how a verdict came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from safelens.verdict import Verdict

MAX_ROWS = 200
"""A longer table leaves out safe videos first."""

_STYLES = {"flagged": "bold red", "safe": "green", "undecided": "yellow", "error": "magenta"}


@dataclass(frozen=True)
class Row:
    """What the table says of one video."""

    video: str
    status: str
    outcome: str
    label: str
    confidence: str
    decided_by: str
    seconds: str

    @classmethod
    def of(cls, verdict: Verdict) -> Row:
        """The row of a verdict."""
        from safelens.report import outcome, printable

        return cls(
            video=printable(verdict.video),
            status=verdict.status,
            outcome=outcome(verdict),
            label=verdict.label or "-",
            confidence="-" if verdict.confidence is None else f"{verdict.confidence:.3f}",
            decided_by=verdict.decided_by or "-",
            seconds=f"{sum(verdict.timing.values()):.2f}",
        )


def print_table(rows: list[Row], console: Console) -> None:
    """Print a table of verdicts; beyond `MAX_ROWS`, safe videos are left out first."""
    from rich.table import Table
    from rich.text import Text

    shown = rows
    if len(rows) > MAX_ROWS:
        # Stable: what is kept stays in the order of the videos.
        urgent = sorted(range(len(rows)), key=lambda i: rows[i].outcome == "safe")[:MAX_ROWS]
        shown = [rows[i] for i in sorted(urgent)]
    table = Table()
    table.add_column("video", overflow="fold")
    for name in ("status", "label"):
        table.add_column(name, no_wrap=True)
    table.add_column("confidence", justify="right")
    table.add_column("decided by")
    table.add_column("seconds", justify="right")
    for row in shown:
        style = _STYLES[row.outcome]
        table.add_row(
            Text(row.video),
            Text(row.status, style=style),
            Text(row.label, style=style),
            row.confidence,
            row.decided_by,
            row.seconds,
        )
    console.print(table)
    if len(shown) < len(rows):
        console.print(
            f"and {len(rows) - len(shown)} more; --out, --report and --json hold all of them",
            highlight=False,
        )
