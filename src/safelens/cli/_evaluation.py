"""What `safelens evaluate` does with the answers: figures, files, and what is printed of them.

Knows files and the terminal. How figures come about is the matter of `safelens.evaluate`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from safelens.cli._options import FAILED, fail
from safelens.cli._progress import progress

if TYPE_CHECKING:
    from safelens.data.records import Record
    from safelens.evaluate.results import Results
    from safelens.evaluate.rubric_judge import RubricJudge
    from safelens.evaluate.run import Run
    from safelens.evaluate.system import System
    from safelens.evaluate.tables import Table
    from safelens.policy import Policy

PACKAGES = ("sklearn", "scipy", "matplotlib")


def check_wanted(built: Mapping[str, System], to_compare: tuple[str, str] | None) -> None:
    """End the command, before anything is asked, where its figures could not be made afterwards."""
    from importlib.util import find_spec

    from safelens.evaluate.cases import EvaluationError
    from safelens.evaluate.results import find_name

    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        fail(f"no package {', '.join(missing)}: pip install 'safelens[evaluate]'")
    if to_compare is None:
        return
    known = {name: system.stages for name, system in built.items()}
    try:
        first, second = (find_name(wanted, known) for wanted in to_compare)
    except EvaluationError as error:
        fail(f"--compare: {error}")
    if first == second:
        fail(f"--compare: {first} with itself; name two systems")


def report(
    data: Path,
    records: Sequence[Record],
    runs: Mapping[str, Run],
    policy: Policy,
    out: Path,
    to_compare: tuple[str, str] | None,
    grader: RubricJudge | None,
) -> Results:
    """Have explanations graded, write the figures and the report, and print the most important of them.

    Raises:
        OSError: a file cannot be written.
    """
    from safelens.evaluate.cases import EvaluationError
    from safelens.evaluate.report import errors_shown, write_report
    from safelens.evaluate.results import judge
    from safelens.evaluate.rubric_judge import explained
    from safelens.evaluate.tables import comparison_table, overview, rubric_table

    try:
        results = judge(data.resolve().name, records, runs, policy, to_compare=to_compare)
    except EvaluationError as error:
        fail(f"the answers are kept, but give no figures: {error}", FAILED)
    if grader is not None:
        with progress(
            "explanations", sum(len(explained(results, n)) for n in results.systems)
        ) as bar:
            results = grader.rate(results, say=bar.say, on_done=bar.advance)
    shown = sum(len(kind.worst) for _, found in errors_shown(results) for kind in found)
    with progress("report", shown) as bar:
        files = write_report(results, out, on_done=bar.advance)
    _print(overview(results))
    if results.compared is not None:
        _print(comparison_table(results.compared))
    if any(judged.rubric for judged in results.systems.values()):
        _print(rubric_table(results))
    for text, names in results.limits.items():
        typer.echo(f"limits of {', '.join(names)}: {text}")
    for name, file in files.items():
        typer.echo(f"{name}: {file}")
    return results


def _print(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as Printed

    console = Console() if sys.stdout.isatty() else Console(width=140)
    printed = Printed(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        printed.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        printed.add_row(*row)
    console.print(printed, markup=False)
    console.print(table.note, markup=False, highlight=False)
