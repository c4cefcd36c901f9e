"""`safelens evaluate`: the arguments, the progress, and what is told at the end.

Knows what is printed. How systems run is the matter of `safelens.evaluate.run`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelens.cli._options import FAILED, INTERRUPTED, Data, VideosRoot, fail
from safelens.cli._progress import progress
from safelens.cli._ray import (
    ActorCpus,
    ActorGpus,
    Actors,
    Address,
    MapEngine,
    MapEngineOption,
    map_pool,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safelens.data.records import Record
    from safelens.engine.cluster import Pool
    from safelens.evaluate.run import Run
    from safelens.evaluate.system import System


def evaluate(
    data: Data,
    systems: Annotated[
        Path, typer.Option(metavar="YAML", help="Names the systems; see docs/systems.md.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="For answers and report; an interrupted run goes on from here."
        ),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this system alone; may be given several times."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take only so many records, the first ones.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="Policy file or name, by which the data are read and all systems judge.",
            show_default="default; a bundle keeps its own",
        ),
    ] = None,
    videos_root: VideosRoot = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Also test whether A is better than B: systems of the file, SYSTEM or SYSTEM/STAGE.",
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="YAML",
            help="Names a model behind an OpenAI-compatible endpoint that grades explanations.",
        ),
    ] = None,
    engine: MapEngineOption = MapEngine.local,
    ray_address: Address = None,
    actors: Actors = None,
    actor_cpus: ActorCpus = None,
    actor_gpus: ActorGpus = None,
) -> None:
    """Run systems over a data set, keep what they answer, and report how right it is and what it costs.

    Writes metrics.json, report.md and report.html. Of a bundle, S1 and S2 answer on every video, and the
    cascade at every tau follows from the two. A video that a system has answered on, under whatever name, is
    not asked again; failures are. With --judge, a model grades explanations from 1 to 10. Exit code 0; 1: answers
    or grades failed, answers give no figures, or a file cannot be written; 2: wrong use, or a system cannot be used; 130: interrupted: give the same command again to go on.
    """
    from safelens.cli._evaluation import check_wanted, report
    from safelens.cli._inputs import read_data, warn_left_out
    from safelens.engine.cluster import EngineError, connected
    from safelens.evaluate.rubric_judge import read_judge
    from safelens.evaluate.system import SystemsError
    from safelens.evaluate.systems import build_systems, read_systems
    from safelens.line_log import LogError

    pool = map_pool(engine, ray_address, actors, actor_cpus, actor_gpus)
    try:
        file = read_systems(systems).only(only or [])
        grader = None if judge is None else read_judge(judge, out / "judge")
        read, used = read_data(data, videos_root, policy or "default")
        built = build_systems(file, used, keep_policies=policy is None)
        check_wanted(built, compare)
        warn_left_out(read.left_out)
        records = read.records[:limit]
        if not records:
            fail(f"{data} has no records")
        with nullcontext() if pool is None else connected(ray_address, [pool]):
            runs = _run(built, records, out, pool)
        _tell(runs, out)
        results = report(data, records, runs, used, out, compare, grader)
    except SystemsError as error:
        fail(str(error))
    except (LogError, EngineError, OSError) as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("stopped; what is answered is kept: give the same command again", INTERRUPTED)
    ungraded = any(judged.rubric and judged.rubric.failed for judged in results.systems.values())
    answers = [a for run in runs.values() for stage in run.answers.values() for a in stage]
    if ungraded or any(answer.outcome == "failed" for answer in answers):
        raise typer.Exit(FAILED)


def _run(
    built: Mapping[str, System], records: tuple[Record, ...], out: Path, pool: Pool | None
) -> dict[str, Run]:
    from safelens.evaluate.run import run_system, take_samples

    runs: dict[str, Run] = {}
    with progress("videos", len(records)) as bar:
        samples = take_samples(records, on_done=bar.advance)
        for name, system in built.items():
            bar.begin(name, len(samples))
            runs[name] = run_system(
                name,
                system,
                samples,
                out,
                pool=pool,
                say=lambda message, name=name: bar.say(f"{name}: {message}"),  # type: ignore[misc]
                on_done=bar.advance,
            )
    return runs


def _tell(runs: Mapping[str, Run], out: Path) -> None:
    """Print how many answers of each kind every system gave, and where they are."""
    from typing import get_args

    from rich.console import Console
    from rich.table import Table

    from safelens.evaluate.answers import Outcome

    outcomes = get_args(Outcome)
    table = Table()
    table.add_column("system", overflow="fold")
    table.add_column("answer of", no_wrap=True)
    for outcome in outcomes:
        table.add_column(outcome, justify="right")
    for name, run in runs.items():
        for stage, answers in run.answers.items():
            counts = [sum(a.outcome == outcome for a in answers) for outcome in outcomes]
            told = stage
            if stage == "cascade" and run.thresholds is not None:
                told = f"cascade ({run.thresholds.short})"
            table.add_row(name, told, *map(str, counts))
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    for name, run in runs.items():
        if run.thresholds is not None and run.thresholds.taus:
            typer.echo(f"{name}: {run.thresholds}")
        if run.earlier:
            total = len(next(iter(run.answers.values())))
            typer.echo(f"{name}: {run.earlier} of {total} were answered before")
    typer.echo(f"answers: {out / 'answers'}, a line a record in SYSTEM/STAGE.jsonl")
