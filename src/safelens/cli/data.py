"""`safelens data`: what is wrong with a data set, what it is made of, and its conversion to records.

Knows the arguments and what is printed. How data sets are read and checked is the matter of
`safelens.data`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelens.cli._options import FAILED, INTERRUPTED, PolicyName, VideosRoot, fail
from safelens.cli._progress import progress

if TYPE_CHECKING:
    from safelens.data.read import Dataset
    from safelens.data.stats import Stats
    from safelens.policy import Policy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Check, convert and count data sets: records, SafeWatch-Bench in its published forms, "
    "folders with labels.csv.",
)

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        help="records.jsonl; a SafeWatch benchmark folder or one of its files; raw SFT JSON or "
        "JSON Lines; swift JSON Lines; a folder with labels.csv. Several are read as one data set.",
    ),
]
Meanings = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=ID",
        help="What a label or a category name of the data means: a category id of the policy, or "
        "safe. May be given several times.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON Lines.")]


class SplitName(StrEnum):
    """Part of a data set."""

    train = "train"
    val = "val"
    test = "test"


@app.command()
def check(
    paths: Paths,
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    meanings: Meanings = None,
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates/--no-near-duplicates",
            help="Compare how videos look, besides their bytes.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Say what is missing, unreadable, duplicated, leaking between splits, or without a class.

    Every video is decoded once. Exit code 0: nothing is wrong; 1: problems were found; 2: wrong
    use; 130: interrupted, and what was found until then is printed.
    """
    from safelens.cli._problems import by_kind, print_json, print_problems, what_is_left
    from safelens.data.check import Checker

    data, used = _read(paths, videos_root, policy, meanings)
    checker = Checker(data.records, used, near_duplicates=near_duplicates)
    began, total, interrupted = time.perf_counter(), len(checker.videos), False
    try:
        with _watched("looking", total) as show:
            checker.look(show)
    except KeyboardInterrupt:
        interrupted = True
    try:
        problems = [*data.problems, *checker.problems()]
    except KeyboardInterrupt:
        fail("stopped while the videos were compared", INTERRUPTED)
    looked = len(checker.seen)
    if as_json:
        print_json(
            problems,
            entries=data.entries,
            records=len(data.records),
            left_out=data.left_out,
            videos=total,
            looked_at=looked,
        )
    else:
        print_problems(problems)
        typer.echo(f"{looked} of {total} videos looked at in {time.perf_counter() - began:.1f} s")
        typer.echo(what_is_left(data))
        kinds = ", ".join(f"{number} {kind}" for kind, number in by_kind(problems).items())
        typer.echo(f"{len(problems)} problems: {kinds}" if problems else "no problems")
    if interrupted:
        typer.echo(f"stopped after {looked} of {total} videos; the rest is unchecked", err=True)
        raise typer.Exit(INTERRUPTED)
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def convert(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="File of records to write, as JSON Lines.")],
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    meanings: Meanings = None,
    split: Annotated[
        SplitName | None,
        typer.Option(
            help="Split of records that do not say theirs.",
            show_default="test for a benchmark, train or val for SFT data",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Source of records that do not say theirs.", show_default="by form"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write data sets as one file of records; what cannot be read is left out with its reason.

    Exit code 0: records were written; 1: there was none to write; 2: wrong use.
    """
    from safelens.cli._problems import print_json, print_problems, what_is_left
    from safelens.data.records import write_records

    if any(path.exists() and out.exists() and path.samefile(out) for path in paths):
        fail(f"--out {out} is one of the files to read; name another")
    if out.is_dir():
        fail(f"--out {out} is a folder; expected the name of a file")
    data, _ = _read(paths, videos_root, policy, meanings, split, source)
    missing = sum(not os.path.exists(record.video) for record in data.records)
    if data.records:
        try:
            write_records(out, (record.beside(out) for record in data.records))
        except OSError as error:
            fail(f"cannot write {out}: {error.strerror or error}", FAILED)
    if as_json:
        print_json(
            data.problems,
            out=str(out) if data.records else None,
            entries=data.entries,
            records=len(data.records),
            left_out=data.left_out,
            undecided=sum(record.undecided for record in data.records),
            missing_videos=missing,
        )
    else:
        print_problems(data.problems, err=True)
        typer.echo(what_is_left(data))
        if missing:
            typer.echo(
                f"{missing} of the records' videos are not there; --videos-root says where they"
                " are, `safelens data check` names them"
            )
        if data.records:
            typer.echo(f"records: {out}")
    if not data.records:
        fail("no record could be read, so nothing was written", FAILED)


@app.command()
def stats(
    paths: Paths,
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    meanings: Meanings = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Picture of samples to write, a row a class.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count a data set: records by class and split, sources, what records carry.

    Exit code 0; 2: wrong use; 130: interrupted.
    """
    from safelens.cli._problems import by_kind, print_problems, what_is_left
    from safelens.data.stats import count

    if sheet is not None and sheet.suffix.lower() != ".png":
        fail(f"--sheet {sheet}: expected a name that ends in .png")
    data, used = _read(paths, videos_root, policy, meanings)
    counted = count(data.records, used)
    if as_json:
        about = {"entries": data.entries, "left_out": data.left_out, **counted.to_dict()}
        typer.echo(json.dumps({**about, "problems": by_kind(data.problems)}))
    else:
        print_problems(data.problems, err=True)
        _print_stats(counted)
        typer.echo(what_is_left(data))
    if sheet is not None:
        _write_sheet(sheet, data, used, as_json)


def _write_sheet(sheet: Path, data: Dataset, policy: Policy, as_json: bool) -> None:
    from safelens.data.samples import choose, write_samples

    rows = choose(data.records, policy)
    try:
        with _watched("drawing", sum(map(len, rows.values()))) as show:
            unread = write_samples(sheet, rows, show)
    except KeyboardInterrupt:
        fail(f"stopped before {sheet} was complete; it was not written", INTERRUPTED)
    except OSError as error:
        fail(f"cannot write {sheet}: {error.strerror or error}", FAILED)
    bad = f"; {unread} samples could not be read" if unread else ""
    typer.echo(f"samples: {sheet}{bad}", err=as_json)


def _print_stats(counted: Stats) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("class")
    for split in counted.classes:
        table.add_column(split, justify="right")
    table.add_column("all", justify="right")
    labels = next(iter(counted.classes.values()), {})
    for label in labels:
        numbers = [row[label] for row in counted.classes.values()]
        style = "" if sum(numbers) else "yellow"
        table.add_row(Text(label, style=style), *map(str, numbers), str(sum(numbers)))
    console = Console()
    console.print(table)

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"{counted.records} records of {counted.videos} videos")
    if counted.several:
        line(f"{counted.several} with several labels, counted in each of their classes")
    if counted.partial:
        line(f"{counted.partial} speak of a part of the policy's categories only")
    line("sources: " + ", ".join(f"{name} {n}" for name, n in counted.sources.items()))
    carried = ", ".join(f"{name} {n}" for name, n in counted.with_field.items() if n)
    if carried:
        line(f"records that carry: {carried}")
    if counted.groups:
        line(f"{counted.groups} groups")
    if counted.scenarios:
        line(f"{len(counted.scenarios)} scenarios; --json counts them")


def _read(
    paths: list[Path],
    videos_root: Path | None,
    policy: str,
    meanings: list[str] | None,
    split: SplitName | None = None,
    source: str | None = None,
) -> tuple[Dataset, Policy]:
    from safelens.data.read import read_dataset
    from safelens.policy import Policy, PolicyError

    names: dict[str, str] = {}
    for text in meanings or []:
        name, equals, target = text.rpartition("=")
        if not (equals and name and target) or names.setdefault(name, target) != target:
            fail(f"--map {text}: expected NAME=ID, each name once")
    if videos_root is not None and not videos_root.is_dir():
        fail(f"--videos-root {videos_root}: no such folder")
    try:
        used = Policy.load(policy)
        data = read_dataset(
            paths,
            used,
            videos_root=videos_root,
            split=None if split is None else split.value,
            source=source,
            names=names,
        )
    except PolicyError as error:
        fail(str(error))
    except ValueError as error:  # DataError among them
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped while reading", INTERRUPTED)
    return data, used


@contextmanager
def _watched(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with an estimate on a terminal, nothing elsewhere."""
    from safelens.cli._interrupt import Interrupt

    # Ctrl-C waits for the video at hand: raised anywhere, it may fall into a callback that drops it.
    with Interrupt() as interrupt, interrupt.whole(), progress(what, total) as bar:

        def show(done: int) -> None:
            bar.at(done)
            interrupt.check()

        yield show
