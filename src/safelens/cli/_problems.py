"""Problems of a data set on a terminal or as JSON Lines, and what of it is left.

Knows how problems are shown. Does not know how they are found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from safelens.data.problems import Problem
    from safelens.data.read import Dataset

MAX_LINES = 20
"""Problems of one kind that are shown on a terminal; JSON holds all."""


def print_problems(problems: Iterable[Problem], *, err: bool = False) -> None:
    """Print problems, a heading a kind."""
    from safelens.data.problems import KINDS

    listed = list(problems)
    for kind, heading in KINDS.items():
        members = [problem for problem in listed if problem.kind == kind]
        if not members:
            continue
        typer.echo(f"{heading} ({len(members)}):", err=err)
        for problem in members[:MAX_LINES]:
            who = "" if problem.id is None else f"{_printable(problem.id)}: "
            out = " [left out]" if problem.left_out else ""
            typer.echo(f"  {who}{_printable(problem.message)}{out}", err=err)
        if len(members) > MAX_LINES:
            typer.echo(f"  and {len(members) - MAX_LINES} more; --json prints all", err=err)


def print_json(found: Sequence[Problem], **summary: object) -> None:
    """Print problems as JSON Lines, then `{"kind": "summary", ...}` with their counts by kind."""
    for problem in found:
        typer.echo(json.dumps(problem.to_dict()))
    typer.echo(json.dumps({"kind": "summary", **summary, "problems": by_kind(found)}))


def by_kind(problems: Iterable[Problem]) -> dict[str, int]:
    """How many problems there are of each kind."""
    return dict(Counter(problem.kind for problem in problems))


def what_is_left(data: Dataset) -> str:
    """How many entries were read, became records and were left out, in words."""
    reasons = Counter(problem.kind for problem in data.problems if problem.left_out)
    why = ", ".join(f"{number} {kind}" for kind, number in reasons.items())
    left_out = f"{data.left_out} left out" + (f" ({why})" if why else "")
    undecided = sum(record.undecided for record in data.records)
    unknown = (
        f"; {undecided} undecided: nothing flagged, but not every category was asked for"
        if undecided
        else ""
    )
    return f"{data.entries} entries: {len(data.records)} records, {left_out}{unknown}"


def _printable(text: str) -> str:
    """Text from a file that moves no cursor."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
