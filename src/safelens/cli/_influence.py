"""`safelens curate influence`: the arguments, the progress and the count at the end.

Knows what is printed, and which records are read. How influence comes about is the matter of `safelens.curate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._inputs import everywhere, read_data, warn_left_out
from safelens.cli._options import (
    FAILED,
    INTERRUPTED,
    Data,
    FramePixels,
    PolicyName,
    ReadCaptions,
    VideosRoot,
    fail,
)
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
    from safelens.curate.passes import InfluenceStore
    from safelens.curate.scores import Scored
    from safelens.data.records import Record
    from safelens.engine.cluster import Pool
    from safelens.policy import Policy

_RUN = "run.json"


def influence(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the passes; an interrupted run goes on.")],
    model: Annotated[
        list[str],
        typer.Option(
            help="Model fine-tuned on the data: directory or hub id. Several are checkpoints of one "
            "training, summed as in TracInCP."
        ),
    ],
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(help="At each checkpoint, its weight in the sum.", show_default="all alike"),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(help="Validation data set.", show_default="DATA's part val"),
    ] = None,
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    frame_pixels: FramePixels = 448 * 448,
    rank: Annotated[
        int, typer.Option(min=1, help="Of the projection: rank squared numbers a layer are kept.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Of the projection.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Samples that are run together.")] = 8,
    read_captions: ReadCaptions = False,
    engine: MapEngineOption = MapEngine.local,
    ray_address: Address = None,
    actors: Actors = None,
    actor_cpus: ActorCpus = None,
    actor_gpus: ActorGpus = None,
) -> None:
    """Take every training sample's gradient once, and store its influence on each class.

    Gradients are those of the last block's linear layers (equation 1). With --engine ray, or started by
    `accelerate launch`, several processes share the work. Exit code 0; 1: samples gave no gradient; 2: wrong use;
    130: interrupted: give the same command again to go on.
    """
    from safelens.curate.passes import CurationError
    from safelens.engine.cluster import EngineError

    pool = map_pool(engine, ray_address, actors, actor_cpus, actor_gpus)
    if learning_rate and len(learning_rate) != len(model):
        fail(f"{len(learning_rate)} learning rates for {len(model)} models; expected one each")
    train, validation, used = parts_of(data, val, videos_root, policy)
    about = {
        "policy": used.sha256,
        "rank": rank,
        "seed": seed,
        "frame_pixels": frame_pixels,
        "read_captions": read_captions,
        "train": _digest(train),
        "val": _digest(validation),
    }
    try:
        for number, source in enumerate(model):
            folder = out / f"checkpoint-{number}"
            if pool is None:
                _collect(folder, source, used, (train, validation), about, batch)
            else:
                _share(folder, source, used, (train, validation), about, batch, pool, ray_address)
    except CurationError as error:
        fail(str(error))
    except EngineError as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("stopped; give the same command again to go on", INTERRUPTED)
    weights = learning_rate or [1.0] * len(model)
    (out / _RUN).write_text(json.dumps({"models": model, "weights": weights}) + "\n")
    _, scored = stored_scores(out, used)
    lost = [reason for reason in scored.errors if reason]
    for reason in lost:
        typer.echo(reason, err=True)
    typer.echo(f"{len(scored.ids)} training samples, {len(lost)} without a gradient: {out}")
    if lost:
        raise typer.Exit(1)


def _collect(
    folder: Path,
    source: str,
    policy: Policy,
    parts: tuple[Sequence[Record], Sequence[Record]],
    about: dict[str, Any],
    batch: int,
) -> None:
    """Both passes of one checkpoint, by as many processes as were launched."""
    from dataclasses import replace

    from safelens.curate.influence_work import InfluenceWork
    from safelens.curate.passes import Share
    from safelens.train.loop import processes
    from safelens.vlm_loading import ModelLoadError

    state = processes()
    share = Share(state.process_index, state.num_processes)
    about = about | {"model": source, "processes": share.of}
    work = InfluenceWork(source, policy, folder, about, batch)
    try:
        collector, samples = work.parts()
    except ModelLoadError as error:
        fail(str(error))
    with state.main_process_first():
        passes = work.collection(collector, share)
    train, val = parts
    with progress("validation", -(-len(val) // share.of), hidden=not state.is_main_process) as bar:
        passes = replace(passes, on_progress=bar.advance)
        passes.validation_pass(samples(val))
        state.wait_for_everyone()
        means = passes.validation_means()
        bar.begin("training", -(-len(train) // share.of))
        passes.training_pass(samples(train), means)
    state.wait_for_everyone()


def _share(
    folder: Path,
    source: str,
    policy: Policy,
    parts: tuple[Sequence[Record], Sequence[Record]],
    about: dict[str, Any],
    batch: int,
    pool: Pool,
    address: str | None,
) -> None:
    """The same by a cluster's processes, chunk by chunk."""
    from safelens.curate.influence_work import InfluenceWork, run_passes, shares_of
    from safelens.curate.passes import InfluenceStore
    from safelens.engine.mapping import run_of
    from safelens.train.loop import processes

    if processes().num_processes > 1:
        fail("--engine ray shares the work by itself; give the command without `accelerate launch`")
    train, val = parts
    about = about | {"model": source, "processes": shares_of(val)}
    InfluenceStore(folder, about)
    work = InfluenceWork(everywhere(source), policy, folder.absolute(), about, batch)
    names = {"val": ("validation", len(val)), "train": ("training", len(train))}
    with progress(*names["val"]) as bar:
        run_passes(
            work,
            run_of(work, pool, address),
            (("val", val), ("train", train)),
            on_part=lambda part: bar.begin(*names[part]),
            on_progress=bar.advance,
        )


def parts_of(
    data: Path, val: Path | None, videos_root: Path | None, policy: str
) -> tuple[list[Record], list[Record], Policy]:
    """Training and validation records that speak of every category, and the policy."""
    read, used = read_data(data, videos_root, policy)
    other = read if val is None else read_data(val, videos_root, policy)[0]
    train = [r for r in read.records if r.split in ("train", None) and not r.undecided]
    held = [r for r in other.records if (val is not None or r.split == "val") and not r.undecided]
    warn_left_out(read.left_out + sum(r.undecided for r in read.records))
    missing = sorted({r.label for r in train} - {r.label for r in held})
    if not train or missing:
        fail(
            "no training records"
            if not train
            else f"no validation record of {', '.join(missing)}: influence on a class without one is "
            "undefined; add some, or leave the class out of the training set"
        )
    return train, held, used


def stored_scores(run: Path, policy: Policy) -> tuple[list[InfluenceStore], Scored]:
    from safelens.curate.passes import CurationError, InfluenceStore
    from safelens.curate.scores import training_scores

    if not (run / _RUN).is_file():
        raise CurationError(f"{run} holds no finished run of `safelens curate influence`")
    weights = json.loads((run / _RUN).read_text())["weights"]
    folders = [run / f"checkpoint-{number}" for number in range(len(weights))]
    stores = [InfluenceStore.open(folder) for folder in folders]
    return stores, training_scores(stores, weights, len(policy.labels))


def _digest(records: Sequence[Record]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for record in records:
        digest.update(record.to_json().encode() + b"\n")
    return digest.hexdigest()
