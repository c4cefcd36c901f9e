"""`safelens safeworld`: write a data set of generated videos with known truth.

Knows the command's arguments and how to show progress. What is written is the writer's matter.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

app = typer.Typer(rich_markup_mode=None)


class Kind(StrEnum):
    """How a wrong label comes about; see safelens.safeworld.noise."""

    symmetric = "symmetric"
    confusion = "confusion"


@app.command()
def safeworld(
    out: Annotated[
        Path,
        typer.Argument(help="Folder to write; new, empty, or of the same seed."),
    ],
    clips: Annotated[int, typer.Option(min=1, help="Scenes to draw; twins come on top.")] = 700,
    seed: Annotated[int, typer.Option(help="The same seed gives the same videos and truth.")] = 0,
    noise: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of train clips whose labels are made wrong."),
    ] = 0.0,
    noise_kind: Annotated[
        Kind,
        typer.Option(
            help="symmetric: any other class. confusion: a class that people mix it up with."
        ),
    ] = Kind.confusion,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
    with_twins: Annotated[
        bool,
        typer.Option(
            "--with-twins/--without-twins",
            help="Also write the safe twin of every violating scene.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one line of JSON.")
    ] = False,
) -> None:
    """Write short videos of a drawn world whose truth is known, with records and labels.

    The folder holds videos/, records.jsonl, safeworld.json, samples.png and safewatch/ (files in
    the layout of SafeWatch-Bench). An interrupted run continues when the same command is given
    again: videos that are complete are kept.
    """
    from safelens.safeworld import writer

    messages = Console(stderr=True)
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    done = 0
    try:
        with Progress(*columns, console=messages, disable=not messages.is_terminal) as bar:
            task = bar.add_task("drawing", total=clips, note="")

            def show(progress: writer.Progress) -> None:
                nonlocal done
                done = progress.done
                note = f"{progress.reused} videos kept" if progress.reused else ""
                bar.update(task, completed=progress.done, note=note)

            about = writer.write_dataset(
                out,
                clips=clips,
                seed=seed,
                noise=noise,
                noise_kind=noise_kind.value,
                jobs=jobs,
                with_twins=with_twins,
                on_progress=show,
            )
    except writer.DatasetError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"error: cannot write: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(
            f"stopped after {done} of {clips} scenes; what is written is whole."
            " Give the same command again to continue.",
            err=True,
        )
        raise typer.Exit(130) from None

    if as_json:
        typer.echo(json.dumps({"out": str(out), **about}))
        return
    counts = about["counts"]
    labels = ", ".join(f"{name} {number}" for name, number in counts["true_labels"].items())
    splits = ", ".join(f"{name} {number}" for name, number in counts["splits"].items())
    typer.echo(f"{counts['videos']} videos ({counts['twins']} twins) in {out}")
    typer.echo(f"labels: {labels}")
    typer.echo(f"parts: {splits}; wrong labels on request: {counts['mislabelled']}")
