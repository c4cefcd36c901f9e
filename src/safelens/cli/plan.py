"""`safelens plan`: how many replicas of S1 and S2, at what cost, for what delay.

Knows its arguments. The simulation is `safelens.engine.plan`; its page is docs/scale.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelens.cli._options import fail

if TYPE_CHECKING:
    from safelens.engine.plan import Measured, Plan

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def plan(
    verdicts: Annotated[
        Path | None,
        typer.Argument(
            help="Verdicts of a run on one replica of each stage, on the hardware meant: a file, or the folder "
            "of --engine ray."
        ),
    ] = None,
    screen_s: Annotated[
        float | None,
        typer.Option(min=0.0, help="In place of verdicts: seconds of one S1 replica a video."),
    ] = None,
    deliberate_s: Annotated[
        float | None,
        typer.Option(min=0.0, help="In place of verdicts: seconds of one S2 replica a video."),
    ] = None,
    escalated: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of videos that S2 is asked."),
    ] = None,
    videos: Annotated[
        int | None, typer.Option(min=1, help="A backlog: how many videos are there.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0.0, help="With --videos: until the last verdict.")
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="A stream: videos of each hour, such as the 24 of a day.",
        ),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(min=0.0, help="With --arrivals: seconds from arrival to verdict."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the videos to which the delay applies.")
    ] = 0.95,
    gpu_price: Annotated[
        float, typer.Option(min=0.0, help="Of a GPU for an hour, in any currency.")
    ] = 1.0,
    screen_gpus: Annotated[
        float, typer.Option(min=0.0, help="GPUs of a replica of S1; 0.25 puts four on one.")
    ] = 1.0,
    deliberate_gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of a replica of S2.")] = 1.0,
) -> None:
    """Simulate the two stages and print the cheapest plan that keeps the time asked for.

    Either a backlog that is all there (--videos, --hours) or a stream (--arrivals, --delay). A video is drawn
    with the seconds of one of the measured ones.
    """
    from safelens.engine.plan import PlanError, Price, plan_backlog, plan_stream

    try:
        measured = _measured(verdicts, screen_s, deliberate_s, escalated)
        price = Price(gpu_price, screen_gpus, deliberate_gpus)
        if videos is not None and hours is not None and arrivals is None and delay is None:
            _say(plan_backlog(measured, price, videos=videos, hours=hours), "last verdict after")
        elif arrivals is not None and delay is not None and videos is None and hours is None:
            curve = [float(part) for part in arrivals.split(",")]
            found = plan_stream(measured, price, curve=curve, delay_s=delay, share=share)
            _say(found, f"{share:.0%} of the videos within")
        else:
            fail("give a backlog (--videos and --hours) or a stream (--arrivals and --delay)")
    except (PlanError, ValueError) as error:
        fail(str(error))


def _measured(
    verdicts: Path | None,
    screen_s: float | None,
    deliberate_s: float | None,
    escalated: float | None,
) -> Measured:
    from dataclasses import replace

    import numpy as np

    from safelens.engine.plan import Measured
    from safelens.engine.verdicts import read_verdicts
    from safelens.line_log import LineLog, LogError
    from safelens.verdict import Verdict

    if verdicts is not None:
        if screen_s is not None or deliberate_s is not None:
            fail("--screen-s and --deliberate-s are in place of verdicts; give one or the other")
        if not verdicts.exists():
            fail(f"{verdicts}: no such file or folder of verdicts")
        try:
            if verdicts.is_dir():
                found = Measured.of(read_verdicts(verdicts))
            else:
                found = Measured.of(Verdict.model_validate(v) for v in LineLog(verdicts).read())
        except LogError as error:
            fail(str(error))
        return found if escalated is None else replace(found, escalated=escalated)
    if screen_s is None or deliberate_s is None or escalated is None:
        fail("give verdicts of a run, or --screen-s, --deliberate-s and --escalated")
    zero, s1, s2 = (np.array([seconds]) for seconds in (0.0, screen_s, deliberate_s))
    return Measured(zero, s1, s2, escalated)


def _say(found: Plan, promise: str) -> None:
    typer.echo(f"S1: {found.screen} replicas, busy {found.screen_busy:.0%} of the time")
    typer.echo(f"S2: {found.deliberate} replicas, busy {found.deliberate_busy:.0%} of the time")
    typer.echo(f"GPUs: {found.gpus} for {found.hours:.2f} hours, cost {found.cost:.2f}")
    typer.echo(f"{promise} {found.delay_s:.1f} s")
