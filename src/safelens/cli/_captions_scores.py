"""`safelens curate captions|scores`: the arguments, the progress and the counts at the end.

Knows what is printed and the files that are written. How captions and scores come about is the matter
of `safelens.curate.captions` and `safelens.curate.crossfit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._options import (
    FAILED,
    INTERRUPTED,
    Data,
    Embedder,
    EncodingName,
    EncodingOption,
    FramePixels,
    LayoutName,
    LayoutOption,
    PolicyName,
    ProbeRate,
    ProbeSteps,
    PruneLayer,
    PruneOption,
    ScreenBatch,
    VideosRoot,
    encoding_of,
    fail,
)
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
    from safelens.curate.crossfit import ProbeScores
    from safelens.data.records import Record
    from safelens.engine.mapping import Run
    from safelens.line_log import LineLog
    from safelens.policy import Policy
    from safelens.train.states import States


def captions(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="File of records to write; an interrupted run goes on.")
    ],
    captioner: Annotated[
        str, typer.Option(metavar="DIR_OR_HUB_ID", help="A Florence-2, best the bundle's own.")
    ],
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    batch: Annotated[int, typer.Option(min=1, help="Frames that are captioned together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a caption.")] = 96,
    replace: Annotated[
        bool, typer.Option("--replace", help="Caption anew what has captions already.")
    ] = False,
    engine: MapEngineOption = MapEngine.local,
    ray_address: Address = None,
    actors: Actors = None,
    actor_cpus: ActorCpus = None,
    actor_gpus: ActorGpus = None,
) -> None:
    """Caption every sampled frame of every record (Algorithm 1, line 14).

    Frames are sampled as for moderation, so that S2 learns from what it will be given. Exit code 0;
    1: videos could not be read, or the file cannot be written; 2: wrong use; 130: interrupted: give
    the same command again to go on.
    """
    from safelens.bundle import ClipSettings
    from safelens.captioner import CaptionerError
    from safelens.cli._inputs import everywhere, read_data, warn_left_out
    from safelens.curate.captions import BLOCK, CaptionWork
    from safelens.engine.cluster import EngineError
    from safelens.engine.mapping import blocks_of, run_of
    from safelens.line_log import LineLog, LogError, claim
    from safelens.vlm_loading import files_digest

    pool = map_pool(engine, ray_address, actors, actor_cpus, actor_gpus)
    _check_out(out, data)
    read, _ = read_data(data, videos_root, policy)
    warn_left_out(read.left_out)
    work = CaptionWork(everywhere(captioner), max_new_tokens, ClipSettings(), batch, replace)
    try:
        run = run_of(work, pool, ray_address)
    except CaptionerError as error:
        fail(str(error))
    settings = {
        "schema": "safelens.captions/1",
        "captioner": files_digest(captioner),
        "max_new_tokens": max_new_tokens,
        "replace": replace,
        "clip": ClipSettings().model_dump(),
    }
    log = LineLog(out)
    try:
        claim(out, settings)
        done = log.ids()
    except LogError as error:
        fail(str(error))
    todo = [record for record in read.records if record.id not in done]
    if done:
        typer.echo(f"{len(read.records) - len(todo)} records are in {out} already", err=True)
    kept = 0 if replace else sum(bool(record.captions) for record in todo)
    try:
        # Here videos share passes of the model whatever their places; a process on a cluster knows its block.
        lost = _write_captions(log, out, [todo] if pool is None else blocks_of(todo, BLOCK), run)
    except (LogError, EngineError) as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("stopped; what is written is whole: give the same command again", INTERRUPTED)
    finally:
        log.close()
    typer.echo(f"{len(todo) - kept - lost} records captioned: {out}")
    if kept:
        typer.echo(f"{kept} had captions and are left as they are (--replace captions them anew)")
    if lost:
        typer.echo(f"{lost} left out: their videos cannot be read")
        raise typer.Exit(FAILED)


def _write_captions(
    log: LineLog,
    out: Path,
    blocks: Sequence[Sequence[Record]],
    run: Run[Record, tuple[Record, str | None]],
) -> int:
    """Append each record as it is captioned; how many were left out."""
    from safelens.cli._interrupt import Interrupt
    from safelens.cli._progress import progress
    from safelens.engine.mapping import Died

    lost = 0
    with (
        Interrupt() as interrupt,
        progress("captions", sum(map(len, blocks))) as bar,
        closing(run(blocks)) as results,
    ):
        for record, result in results:
            died = f"each process that captioned it died ({result})"
            told, reason = (record, died) if isinstance(result, Died) else result
            if reason is None:
                log.add(told.beside(out).to_json())
            else:
                bar.say(f"{record.id}: left out: {reason}")
                lost += 1
            bar.advance()
            interrupt.check()
    return lost


def scores(
    data: Data,
    out: Annotated[Path, typer.Option(help="File of records to write.")],
    model: Embedder,
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    folds: Annotated[
        int, typer.Option(min=2, help="Parts of the data; each is scored by a probe of the others.")
    ] = 5,
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="In place of folds, as in the paper: one probe on this share of the records, "
            "which get no scores.",
        ),
    ] = None,
    batch: ScreenBatch = 8,
    steps: ProbeSteps = 1000,
    lr: ProbeRate = 1e-4,
    seed: Annotated[int, typer.Option(help="Of folds and probes.")] = 0,
    frame_pixels: FramePixels = 448 * 448,
    layout: LayoutOption = LayoutName.policy_first,
    policy_encoding: EncodingOption = EncodingName.sequential,
    prune: PruneOption = None,
    prune_layer: PruneLayer = None,
    states: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="S1's states are kept here and never made twice; `safelens train probe` can share it.",
            show_default="OUT.states",
        ),
    ] = None,
    engine: MapEngineOption = MapEngine.local,
    ray_address: Address = None,
    actors: Actors = None,
    actor_cpus: ActorCpus = None,
    actor_gpus: ActorGpus = None,
) -> None:
    """Score every record by a probe that did not train on it (Algorithm 1, lines 9-13).

    Records of one group, one video or one scene and its twin stay in one fold. Probes train on what is
    decided and of part train or of none; the rest is only scored. Exit code 0; 1: videos could not be
    read, or a file cannot be written; 2: wrong use; 130: interrupted: give the same command again to
    go on.
    """
    from safelens.cli._inputs import (
        collect,
        everywhere,
        read_data,
        screening,
        state_store,
        stopping,
        warn_left_out,
    )
    from safelens.train.states import ScreenWork

    encoding = encoding_of(policy_encoding, prune, prune_layer)
    pool = map_pool(engine, ray_address, actors, actor_cpus, actor_gpus)
    _check_out(out, data)
    if held_out is not None and not 0 < held_out < 1:
        fail(f"--held-out {held_out}: expected a share between 0 and 1")
    read, used = read_data(data, videos_root, policy)
    warn_left_out(read.left_out)
    records = list(read.records)
    if not records:
        fail(f"{data} has no records")
    _check_classes(records, used, 2 if held_out is not None else folds)
    source = everywhere(model)
    work = ScreenWork(source, used, layout.value, encoding, frame_pixels, batch)
    run = screening(work, pool, ray_address)
    with stopping():
        folder = states or out.with_name(f"{out.name}.states")
        store = state_store(folder, model, used, layout, frame_pixels, encoding)
        seen = collect(run, used, records, store)
        by_id = {record.id: record for record in records}
        screened = [by_id[name] for name in seen.ids]
        found = _fitted(screened, seen, used, folds, held_out, steps, lr, seed)
        _write_scores(out, screened, found, used)
    if seen.left_out:
        raise typer.Exit(FAILED)


def _fitted(
    records: list[Record],
    states: States,
    policy: Policy,
    folds: int,
    held_out: float | None,
    steps: int,
    lr: float,
    seed: int,
) -> ProbeScores:
    import torch

    from safelens.cli._progress import progress
    from safelens.curate.crossfit import cross_fitted_scores, groups_of, held_out_scores

    common: dict[str, Any] = {
        "trainable": torch.tensor([_trains(record) for record in records]),
        "steps": steps,
        "lr": lr,
        "seed": seed,
    }
    groups = groups_of(records, states.sha256)
    try:
        with progress("probes", folds if held_out is None else 1) as bar:
            common["on_fit"] = bar.advance
            if held_out is None:
                return cross_fitted_scores(states, groups, policy.labels, folds=folds, **common)
            return held_out_scores(states, groups, policy.labels, share=held_out, **common)
    except ValueError as error:
        fail(str(error))


def _write_scores(out: Path, records: list[Record], found: ProbeScores, policy: Policy) -> None:
    """The records with their scores; those without lose what scores they had, whose origin is unknown."""
    from safelens.data.records import write_records

    rows = zip(records, found.scored_by.tolist(), found.scores.tolist(), strict=True)
    written = [
        record.beside(out).model_copy(
            update={
                "scores": None
                if probe < 0
                else {
                    label: round(score, 6)
                    for label, score in zip(policy.labels, scores, strict=True)
                }
            }
        )
        for record, probe, scores in rows
    ]
    try:
        write_records(out, written)
    except OSError as error:
        fail(f"cannot write {out}: {error.strerror or error}", FAILED)
    for number, accuracy in enumerate(found.accuracies):
        scored = int((found.scored_by == number).sum())
        typer.echo(
            f"probe {number + 1}: fitted on {len(found.fitted_on[number])} records, scored {scored}: "
            f"average class accuracy {_told(accuracy)}"
        )
    if len(found.accuracies) > 1:
        typer.echo(f"all together: average class accuracy {_told(found.accuracy)}")
    without = int((found.scored_by < 0).sum())
    typer.echo(f"{len(written) - without} records scored: {out}")
    if without:
        typer.echo(f"{without} written without scores: the probe trained on them or their group")
    again = sum(record.scores is not None for record in records)
    if again:
        typer.echo(f"{again} had scores, which were replaced or removed")


def _told(accuracy: float) -> str:
    return "unknown" if math.isnan(accuracy) else f"{accuracy:.3f}"


def _trains(record: Record) -> bool:
    return not record.undecided and record.split in ("train", None)


def _check_classes(records: list[Record], policy: Policy, parts: int) -> None:
    """Before the states, which take hours, say what would fail after them."""
    counts = dict.fromkeys(policy.labels, 0)
    for record in records:
        if _trains(record):
            counts[record.label] += 1
    if not any(counts.values()):
        fail("no record can be trained on: each is undecided or of a part other than train")
    for label, count in counts.items():
        if not count:
            typer.echo(
                f"warning: no record of class {label!r}: probes do not learn it, and its scores "
                "mean nothing",
                err=True,
            )
        elif count < parts or count - math.ceil(count / parts) < 2:
            fail(
                f"class {label!r} has {count} records: {parts} parts need one each, and each probe "
                "two to train on; ask for fewer folds, add records, or leave the class out"
            )


def _check_out(out: Path, data: Path) -> None:
    if out.resolve() == data.resolve():
        fail(f"--out {out} is the input; name another file")
    if out.is_dir():
        fail(f"--out {out} is a folder; expected the name of a file")
