"""`safelens calibrate`: the arguments, the progress, and what is told at the end.

Knows what is typed and printed. How temperature and tau are found is the matter of
`safelens.evaluate.calibration`.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelens.cli._options import FAILED, INTERRUPTED, Data, VideosRoot, fail
from safelens.cli._progress import progress

if TYPE_CHECKING:
    from safelens.bundle import Bundle
    from safelens.calibrated_bundle import Method
    from safelens.data.records import Record
    from safelens.evaluate.calibration import Found
    from safelens.evaluate.parts import Parts


class Target(StrEnum):
    """What tau is chosen by."""

    risk = "risk"
    class_risk = "class-risk"
    cost = "cost"
    accuracy = "accuracy"


def _bound(text: str, usual: float) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=text, show_default=str(usual))
    return option


def calibrate(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="Directory, packaged name or hub id.")
    ],
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="The calibrated bundle; may be the bundle's own directory."
        ),
    ],
    target: Annotated[
        Target,
        typer.Option(
            help="What tau is chosen by. risk: of what S1 decides alone, at most --alpha is wrong. "
            "class-risk: the same for each class that S1 may answer, with a tau each. cost: the most "
            "accurate tau within --most. accuracy: the cheapest that reaches --least."
        ),
    ] = Target.risk,
    alpha: Annotated[float | None, _bound("Bound on the risk.", 0.05)] = None,
    delta: Annotated[
        float | None, _bound("Bound on the probability that a promise does not hold.", 0.05)
    ] = None,
    most: Annotated[
        float | None,
        _bound("Most that the cascade may take, as a share of the seconds of S2 on all.", 0.4),
    ] = None,
    least: Annotated[float | None, _bound("Least accuracy of the cascade.", 0.95)] = None,
    temperature: Annotated[
        bool,
        typer.Option(
            "--temperature/--no-temperature",
            help="Fit S1's temperature, on a quarter of the videos of its own.",
        ),
    ] = True,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Answers are kept here; an interrupted run goes on.",
            show_default="OUT.work",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the division of the videos.")] = 0,
    videos_root: VideosRoot = None,
) -> None:
    """Make S1's confidence honest, and choose from which confidence on its answer stands.

    The videos must be such as the bundle is to moderate, with labels that hold, and none that it was trained
    on. Those of one group stay together. What has no known truth, fails or looks unfamiliar is counted and
    never taken for right. Exit code 0; 1: the data cannot carry what is asked for, or a file cannot be
    written, and no bundle was; 2: wrong use; 130: interrupted: give the same command again to go on.
    """
    from safelens.bundle import Bundle, BundleError
    from safelens.calibrate import CalibrationError
    from safelens.calibrated_bundle import destination, write_calibration
    from safelens.cli._inputs import read_data, warn_left_out
    from safelens.evaluate.cases import EvaluationError
    from safelens.evaluate.system import SystemsError
    from safelens.line_log import LogError

    asked = {"alpha": alpha, "delta": delta, "most": most, "least": least}
    method, bounds = _bounds(target, asked)
    if missing := [name for name in ("scipy", "matplotlib") if find_spec(name) is None]:
        fail(f"{' and '.join(missing)} missing: pip install 'safelens[evaluate]'")
    try:
        found = Bundle.load(bundle)
        destination(found, out)
        policy = found.folder / found.settings.policy
        read, _ = read_data(data, videos_root, str(policy))
        warn_left_out(read.left_out)
        if not read.records:
            fail(f"{data} has no records")
        _warn_trained(read.records)
        if temperature and found.settings.screen.probe is None:
            typer.echo("without a probe there are no logits for a temperature to divide", err=True)
            temperature = False
        folder = work or out.with_name(f"{out.name}.work")
        parts, result = _calibrate(
            bundle, found, read.records, method, bounds, folder, temperature, seed
        )
    except (BundleError, SystemsError, EvaluationError) as error:
        fail(str(error))
    except (CalibrationError, LogError, OSError) as error:
        fail(f"{error}; nothing was written", FAILED)
    except KeyboardInterrupt:
        fail("stopped; what is answered is kept: give the same command again", INTERRUPTED)
    try:
        digest = write_calibration(bundle, out, result.calibration)
    except BundleError as error:
        fail(str(error), FAILED)
    _tell(parts, result)
    typer.echo(f"{out}: SHA-256 {digest}")


def _bounds(target: Target, asked: dict[str, float | None]) -> tuple[Method, dict[str, float]]:
    """The method and what it is asked for; wrong use ends the command."""
    from safelens.evaluate.calibration import BOUNDS

    method: Method = target.value.replace("-", "_")  # type: ignore[assignment]
    usual = BOUNDS[method]
    for name, value in asked.items():
        if value is None:
            continue
        if name not in usual:
            wanted = " and ".join(f"--{n}" for n in usual)
            fail(f"--{name} has no meaning with --target {target}, which takes {wanted}")
        if not (0 < value < 1 or (name == "most" and value == 1)):
            fail(f"--{name} {value:g}: expected a number between 0 and 1")
    given = {name: value for name, value in asked.items() if value is not None}
    return method, usual | given


def _warn_trained(records: tuple[Record, ...]) -> None:
    trained = sum(record.split == "train" for record in records)
    if trained:
        typer.echo(
            f"{trained} of {len(records)} records are of part 'train': if this bundle was trained on them, "
            "the result means nothing; give others",
            err=True,
        )


def _calibrate(
    source: str,
    bundle: Bundle,
    records: tuple[Record, ...],
    method: Method,
    bounds: dict[str, float],
    work: Path,
    temperature: bool,
    seed: int,
) -> tuple[Parts, Found]:
    from safelens.evaluate.calibration import Watch, calibrate
    from safelens.evaluate.parts import divide_samples
    from safelens.evaluate.run import take_samples

    with progress("videos", len(records)) as bar:
        samples = take_samples(records, on_done=bar.advance)
        parts = divide_samples(samples, bundle.policy, temperature=temperature, seed=seed)
        watch = Watch(bar.begin, bar.advance, bar.say)
        found = calibrate(source, bundle, parts, method, bounds, work, seed=seed, watch=watch)
    return parts, found


def _tell(parts: Parts, found: Found) -> None:
    """Print what was found, what it was found on, and what it does on the test part."""
    from rich.console import Console
    from rich.table import Table

    result = found.calibration
    told = [
        f"{name} {count} ({parts.groups[name]} groups)"
        for name, count in result.counts.items()
        if count
    ]
    typer.echo(f"videos for {', '.join(told)}")
    if result.left_out:
        counted = ", ".join(f"{count} {reason}" for reason, count in result.left_out.items())
        typer.echo(f"not counted for S1: {counted}")
    if found.fit is None:
        typer.echo(f"temperature unchanged: {found.without}")
    else:
        nll = f"{found.fit.nll_before:.4f} -> {found.fit.nll_after:.4f} nats"
        typer.echo(f"temperature x {found.fit.temperature:.4f} (negative log-likelihood {nll})")
    typer.echo(str(result.thresholds))
    typer.echo(_promise(found))
    before, after = result.before, result.after
    table = Table(
        title=f"on the {result.counts['test']} videos of the test part", title_justify="left"
    )
    table.add_column("", no_wrap=True)
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("expected calibration error", f"{before.ece:.4f}", f"{after.ece:.4f}")
    both = before, after
    table.add_row("S1 decides alone", *(f"{m.alone} of {m.answers}" for m in both))
    table.add_row("wrong of these", *(_share(m.wrong, m.alone) for m in both))
    if result.thresholds.taus:
        table.add_row("wrong in the worst class", *(f"{m.risk:.1%}" for m in both))
    if after.cascade is not None:
        point = after.cascade
        table.add_row("right, with S2", "-", _share(point.right, point.count))
        table.add_row("seconds, as a share of S2 on all", "-", f"{point.cost:.3f}")
    console = Console() if sys.stdout.isatty() else Console(width=100)
    console.print(table)


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "-"


def _promise(found: Found) -> str:
    """What is promised, in words, or that nothing is."""
    from safelens.risk import ClassRiskControl, RiskControl

    result = found.calibration
    evidence, target = result.evidence, result.target
    if isinstance(evidence, RiskControl | ClassRiskControl):
        each = " in each class" if isinstance(evidence, ClassRiskControl) else ""
        return (
            f"promise: of what S1 decides alone at most {target['alpha']:.3g} is wrong{each}, with "
            f"probability {1 - target['delta']:.3g}, on videos drawn as these were, each by itself"
        )
    if result.lower_bound is not None:
        return (
            f"promise: the cascade is right on at least {target['least']:.3g}, with probability "
            f"{1 - target['delta']:.3g} (lower bound {result.lower_bound:.4f}), on videos drawn as these "
            "were, each by itself"
        )
    return (
        f"on the videos that tau was chosen on, {evidence.right} of {evidence.count} are right at "
        f"{evidence.cost:.3f} of the seconds of S2 on all; nothing is promised"
    )
