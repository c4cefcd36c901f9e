"""`safelens safeworld`: write a data set of generated videos with known truth.

Knows the command's arguments and how to show progress. What is written is the writer's matter.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from safelens.cli._options import FAILED, INTERRUPTED, fail
from safelens.cli._progress import progress

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

    done = 0
    try:
        with progress("drawing", clips) as bar:

            def show(state: writer.Progress) -> None:
                nonlocal done
                done = state.done
                if state.reused:
                    bar.note(f"{state.reused} videos kept")
                bar.at(done)

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
        fail(str(error))
    except OSError as error:
        fail(f"cannot write: {error}", FAILED)
    except KeyboardInterrupt:
        fail(
            f"stopped after {done} of {clips} scenes; what is written is whole."
            " Give the same command again to continue.",
            INTERRUPTED,
        )

    if as_json:
        typer.echo(json.dumps({"out": str(out), **about}))
        return
    counts = about["counts"]
    labels = ", ".join(f"{name} {number}" for name, number in counts["true_labels"].items())
    splits = ", ".join(f"{name} {number}" for name, number in counts["splits"].items())
    typer.echo(f"{counts['videos']} videos ({counts['twins']} twins) in {out}")
    typer.echo(f"labels: {labels}")
    typer.echo(f"parts: {splits}; wrong labels on request: {counts['mislabelled']}")
