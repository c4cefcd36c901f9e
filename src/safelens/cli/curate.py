"""`safelens curate`: the filter on what influence has stored.

Knows the arguments and what is printed. The steps of Algorithm 1 are the matter of `safelens.curate`; the
other commands of the group are in `_influence`, `_captions_scores` and `_traces`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._captions_scores import captions, scores
from safelens.cli._influence import influence, parts_of, stored_scores
from safelens.cli._options import Data, PolicyName, VideosRoot, fail
from safelens.cli._traces import traces

if TYPE_CHECKING:
    from safelens.curate.influence import Averages
    from safelens.curate.scores import Scored
    from safelens.data.records import Record
    from safelens.policy import Policy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Algorithm 1: leave out training samples that harm, and give the rest captions, scores and "
    "reasoning traces.",
)

app.command()(captions)
app.command()(scores)
app.command()(traces)
app.command()(influence)

FALSE_DROP_RATE = 0.05


class ScoreName(StrEnum):
    """Which influence the filter reads."""

    whitened = "whitened"
    tracin = "tracin"


@app.command("filter")
def filter_(
    data: Data,
    run: Annotated[Path, typer.Argument(help="What `safelens curate influence` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder: kept.jsonl, decisions.jsonl, suspects.jsonl.")],
    val: Annotated[
        Path | None, typer.Option(help="Validation data set.", show_default="DATA's part val")
    ] = None,
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    score: Annotated[
        ScoreName,
        typer.Option(
            help="whitened: cosine of preconditioned gradients. tracin: dot product, as printed."
        ),
    ] = ScoreName.whitened,
    false_drop_rate: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=0.5,
            help="Share of rightly labelled samples that may fail each criterion, judged by the validation "
            "samples; tracin is held against 0, as printed.",
        ),
    ] = FALSE_DROP_RATE,
    gallery: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Page of the extremes of each class.")
    ] = None,
    shown: Annotated[int, typer.Option(min=1, help="Samples at each end of the page.")] = 6,
    matrix: Annotated[
        Path | None, typer.Option(metavar="NPY", help="The full matrix, for audit.")
    ] = None,
) -> None:
    """Keep what helps its own class and harms not all (Algorithm 1, line 4).

    Also lists validation samples that a person should look at again (appendix K).
    """
    from safelens.curate.filtering import harms_everyone, helps_own_class, keep
    from safelens.curate.passes import CurationError
    from safelens.curate.scores import validation_scores, write_matrix
    from safelens.data.records import write_records

    train, validation, used = parts_of(data, val, videos_root, policy)
    try:
        stores, found = stored_scores(run, used)
        suspects = validation_scores(stores[0], len(used.labels))
        if matrix is not None:
            write_matrix(stores[0], matrix, score.value)
    except CurationError as error:
        fail(str(error))
    if found.ids != [record.id for record in train]:
        fail(f"{run} is of other training samples than {data}: run `safelens curate influence`")
    averages, least = found.averages[score.value], found.least(score.value, false_drop_rate)
    for name, count in _too_few(found, least, used):
        typer.echo(
            f"warning: nothing of {name} is dropped: a rate of {false_drop_rate:g} needs "
            f"{math.ceil(1 / false_drop_rate) - 1} validation samples of it, there are {count}",
            err=True,
        )
    kept, helps, harms = (
        rule(averages, least).tolist() for rule in (keep, helps_own_class, harms_everyone)
    )
    decisions = []
    for row in range(len(train)):
        reasons = [found.errors[row]] if found.errors[row] else []
        if not reasons and not helps[row]:
            reasons.append("does not help its own class")
        if not reasons and harms[row]:
            reasons.append("harms the validation set as a whole")
        bounds = {"own": float(least.own[row]), "all": float(least.all[row])}
        decisions.append(
            _line(found, row, score.value, used)
            | {f"least_{k}": v if math.isfinite(v) else None for k, v in bounds.items()}
            | {"kept": kept[row], "reasons": reasons}
        )
    out.mkdir(parents=True, exist_ok=True)
    write_records(out / "kept.jsonl", (r for r, good in zip(train, kept, strict=True) if good))
    _write_lines(out / "decisions.jsonl", decisions)
    doubtful = [
        _line(suspects, row, score.value, used)
        for row, good in enumerate(_unsuspicious(suspects, score.value))
        if not good
    ]
    doubtful.sort(key=lambda line: line["own"])
    _write_lines(out / "suspects.jsonl", doubtful)
    _print_summary(decisions, len(validation), len(doubtful), used)
    if gallery is not None:
        _gallery(gallery, found, score.value, kept, train, used, shown)
        typer.echo(f"gallery: {gallery}")


def _line(found: Scored, row: int, score: Any, policy: Policy) -> dict[str, Any]:
    averages = found.averages[score]
    usable = found.errors[row] is None
    return {
        "id": found.ids[row],
        "label": policy.labels[int(found.labels[row])],
        "own": float(averages.own[row]) if usable else None,
        "all": float(averages.all[row]) if usable else None,
        "loss": float(found.losses[row]) if usable else None,
    }


def _too_few(found: Scored, least: Averages, policy: Policy) -> Iterator[tuple[str, int]]:
    """Classes for which the validation samples give no bound, and how many of them there are."""
    for number in found.labels.unique().tolist():
        if not bool(least.own[found.labels == number].isfinite().any()):
            yield policy.labels[number], int((found.clean_labels == number).sum())


def _unsuspicious(found: Scored, score: Any) -> list[bool]:
    """Validation samples that pass the paper's criteria among the training samples."""
    from safelens.curate.filtering import keep, zero

    kept: list[bool] = keep(found.averages[score], zero(found.averages[score])).tolist()
    return kept


def _print_summary(
    decisions: list[dict[str, Any]], validation: int, doubtful: int, policy: Policy
) -> None:
    kept = Counter(line["label"] for line in decisions if line["kept"])
    every = Counter(line["label"] for line in decisions)
    for label in policy.labels:
        typer.echo(f"{label}: {kept[label]} of {every[label]} kept")
    lost = sum(line["own"] is None for line in decisions)
    typer.echo(
        f"{kept.total()} of {len(decisions)} kept, {len(decisions) - kept.total() - lost} dropped, "
        f"{lost} without a gradient; {doubtful} of {validation} validation samples to look at"
    )
    empty = [label for label in policy.labels if every[label] and not kept[label]]
    if empty:
        typer.echo(f"warning: nothing is left of {', '.join(empty)}", err=True)


def _gallery(
    path: Path,
    found: Scored,
    score: Any,
    kept: list[bool],
    train: list[Record],
    policy: Policy,
    count: int,
) -> None:
    from safelens.curate.gallery import Shown, extremes, sheet_of, write_gallery
    from safelens.video import ClipOptions, VideoReader

    classes = []
    with VideoReader(ClipOptions()) as reader:
        for number, name in enumerate(policy.labels):
            ends = extremes(found.averages[score].own, found.labels, number, count)
            sides = {}
            for side, rows in ends.items():
                lines = [(row, _line(found, row, score, policy)) for row in rows]
                sides[side] = [
                    Shown(
                        line["id"],
                        line["label"],
                        line["own"],
                        line["all"],
                        kept[row],
                        sheet_of(train[row].video, reader.read),
                    )
                    for row, line in lines
                ]
            classes.append((name, sides))
    write_gallery(path, f"Influence ({score}) of {len(train)} training samples", classes)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
