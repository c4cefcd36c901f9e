"""The progress bar of every command: what is done, how many, time taken and left, a note.

Knows the terminal: messages go above the bar, and without a terminal there is no bar. Does not know
what is being done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A bar that is shown; `progress` makes it."""

    def __init__(self, shown: Progress, task: TaskID) -> None:
        self._shown = shown
        self._task = task

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._shown.advance(self._task, count)

    def at(self, done: int) -> None:
        """So many are done in all."""
        self._shown.update(self._task, completed=done)

    def note(self, text: str) -> None:
        """Shown at the end of the bar."""
        self._shown.update(self._task, note=text)

    def begin(self, what: str, total: int) -> None:
        """Start anew, with something else."""
        self._shown.reset(self._task, description=what, total=total)

    def say(self, message: str) -> None:
        """Print a line to stderr, above the bar."""
        self._shown.console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str, total: int, *, hidden: bool = False) -> Iterator[Bar]:
    """A bar with an estimate on stderr where that is a terminal.

    Args:
        what: Shown before the bar.
        total: How many there are to do.
        hidden: Show none on a terminal either.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=hidden or not console.is_terminal,
        redirect_stdout=False,  # rich would move it over to the bar's stream
    )
    with shown:
        yield Bar(shown, shown.add_task(what, total=total, note=""))
