"""`safelens train`: embedder, probe, captioner and reasoner, from a data set.

Knows the arguments, the paper's defaults and what is printed. How each is trained is the matter of
`safelens.train`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelens.cli._inputs import (
    check_layer,
    collect,
    load_vlm,
    read_data,
    report_left_out,
    screening,
    state_store,
    stopping,
    video_reader,
    warn_left_out,
)
from safelens.cli._options import (
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
    RandomPrune,
    ReadCaptions,
    ScreenBatch,
    VideosRoot,
    encoding_of,
    fail,
)

if TYPE_CHECKING:
    from safelens.data.records import Record
    from safelens.policy import Policy
    from safelens.train.clips import ClipBatches
    from safelens.train.loop import LoopConfig
    from safelens.train.reasoner import AugmentedClip

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Train the parts of a bundle. Several processes: `accelerate launch -m safelens train ...`. "
    "An interrupted training goes on when the same command is given again.",
)

Out = Annotated[Path, typer.Option(help="Folder for checkpoints, curves and the trained part.")]
Model = Annotated[str, typer.Option(help="Where to start: directory or hub id.")]
Split = Annotated[str, typer.Option(help="Part of the data set to train on.")]
Epochs = Annotated[float, typer.Option(min=0.01, help="Times through the data.")]
Batch = Annotated[int, typer.Option(min=1, help="Clips in a step of one process.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Batches averaged in one step.")]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Peak learning rate of AdamW.")]
Rank = Annotated[int, typer.Option(min=0, help="Of LoRA; 0 trains all weights.")]
Bf16 = Annotated[bool, typer.Option("--bf16/--fp32", help="Compute in bfloat16.")]
Seed = Annotated[int, typer.Option(help="Of the order of the data, and of new weights.")]


@app.command()
def embedder(
    data: Data,
    out: Out,
    model: Model = "Qwen/Qwen3-VL-2B-Instruct",
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    split: Split = "train",
    epochs: Epochs = 2,
    batch: Batch = 8,
    accumulate: Accumulate = 1,
    lr: Rate = 1e-4,
    rank: Rank = 64,
    bf16: Bf16 = False,
    seed: Seed = 0,
    frame_pixels: FramePixels = 448 * 448,
    layout: LayoutOption = LayoutName.policy_first,
    policy_encoding: EncodingOption = EncodingName.sequential,
    prune: PruneOption = None,
    prune_layer: PruneLayer = None,
    random_prune: RandomPrune = False,
    read_captions: ReadCaptions = False,
) -> None:
    """Fine-tune a vision-language model on the guardrail answer (Algorithm 1, lines 1 and 9).

    With --read-captions it is no embedder of S1's, which has none, but a model for `curate influence`.
    """
    from safelens.train.clips import labelled
    from safelens.train.embedder import train_embedder
    from safelens.train.loop import processes
    from safelens.train.reasoner import add_adapter, merge_adapter

    encoding = encoding_of(policy_encoding, prune, prune_layer, random_prune=random_prune)
    records, used = _records(data, videos_root, policy, split)
    if read_captions:
        told = [record for record in records if record.captions]
        if len(told) < len(records):
            typer.echo(f"{len(records) - len(told)} records without captions left out", err=True)
        if not told:
            fail(f"no record of {data} has captions; `safelens curate captions` adds them")
        records = told
    vlm = load_vlm(model, frame_pixels)
    check_layer(vlm, encoding)
    with _clips(records, batch, seed) as batches, stopping():
        if rank:
            add_adapter(vlm, rank, 2 * rank, "screen", seed=seed)
        train_embedder(
            vlm,
            used,
            lambda number: labelled(vlm, batches(number)),
            out,
            _config(len(records), epochs, batch, accumulate, lr, bf16, seed),
            auxiliary=0.0,
            read_captions=read_captions,
            layout=layout.value,
            encoding=encoding,
            random_keep=random_prune,
        )
        if rank:
            merge_adapter(vlm)
        if processes().is_main_process:
            vlm.model.save_pretrained(str(out / "model"))
            vlm.processor.save_pretrained(str(out / "model"))
    _done(out / "model", batches.left_out)


@app.command()
def probe(
    data: Data,
    out: Out,
    model: Embedder,
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    split: Split = "train",
    batch: ScreenBatch = 8,
    steps: ProbeSteps = 1000,
    lr: ProbeRate = 1e-4,
    seed: Seed = 0,
    frame_pixels: FramePixels = 448 * 448,
    layout: LayoutOption = LayoutName.policy_first,
    policy_encoding: EncodingOption = EncodingName.sequential,
    prune: PruneOption = None,
    prune_layer: PruneLayer = None,
    false_refusal_rate: Annotated[
        float, typer.Option(min=0, max=0.5, help="Clips in domain that the guard may refuse.")
    ] = 0.01,
    states: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="S1's states are kept here and never made twice; `safelens curate scores` can share it.",
            show_default="OUT/states",
        ),
    ] = None,
) -> None:
    """Fit the probe (Algorithm 1, line 10) and the domain guard on the embedder's states.

    The guard's threshold is set on the data's part val, or on a fifth of the clips where there is none.
    """
    import numpy as np

    from safelens.domain import DomainGuard
    from safelens.domain_features import domain_views
    from safelens.probe import ProbeConfig, fit_probe
    from safelens.train.states import ScreenWork

    encoding = encoding_of(policy_encoding, prune, prune_layer)
    records, used = _records(data, videos_root, policy, split)
    held, _ = _records(data, videos_root, policy, "val", required=False)
    run = screening(ScreenWork(model, used, layout.value, encoding, frame_pixels, batch))
    with stopping():
        store = state_store(states or out / "states", model, used, layout, frame_pixels, encoding)
        seen = collect(run, used, records, store)
        features, width = seen.features, seen.question.shape[-1]
        if held:
            fresh = collect(run, used, held, store, title="held-out states").features
        else:
            order = np.random.default_rng(seed).permutation(len(features))
            cut = max(1, len(order) // 5)
            fresh, features = features[order[:cut]], features[order[cut:]]
        config = ProbeConfig(input_dim=width, labels=tuple(used.labels))
        try:
            found = fit_probe(
                seen.question, None, seen.labels, config, steps=steps, lr=lr, seed=seed
            )
            guard = DomainGuard.fit(
                features,
                fresh,
                false_refusal_rate=false_refusal_rate,
                views=domain_views(width),
            )
        except ValueError as error:
            fail(str(error))
        found.probe.save(out / "probe")
        guard.save(out / "domain.safetensors")
        (out / "probe.json").write_text(
            json.dumps(
                {
                    "clips": len(seen.ids),
                    "best_step": found.best_step,
                    "held_out_loss": found.held_out_loss,
                    "held_out_accuracy": found.held_out_accuracy,
                    "history": found.history,
                }
            )
            + "\n"
        )
    typer.echo(
        f"probe on {len(seen.ids)} clips: held-out average class accuracy "
        f"{found.held_out_accuracy:.3f} at step {found.best_step}"
    )
    _done(out / "probe", {})


@app.command()
def captioner(
    data: Data,
    out: Out,
    model: Model = "florence-community/Florence-2-large",
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    split: Split = "train",
    epochs: Epochs = 2,
    batch: Batch = 8,
    accumulate: Accumulate = 1,
    lr: Rate = 1e-5,
    bf16: Bf16 = False,
    seed: Seed = 0,
) -> None:
    """Fine-tune Florence-2 on the records' captions; every frame with a caption is a sample."""
    from safelens.captioner import Captioner, CaptionerError
    from safelens.train.captioner import train_captioner
    from safelens.train.clips import captioned_frames

    records, _ = _records(data, videos_root, policy, split)
    told = [record for record in records if record.captions]
    if not told:
        fail(f"no record of {data} has captions")
    try:
        eyes = Captioner.load(model, dtype="float32")
    except CaptionerError as error:
        fail(str(error))
    with _clips(told, batch, seed) as batches, stopping():
        train_captioner(
            eyes.model,
            eyes.processor,
            lambda number: captioned_frames(batches(number)),
            out,
            _config(len(told), epochs, batch, accumulate, lr, bf16, seed),
        )
    _done(out / "model", batches.left_out)


@app.command()
def reasoner(
    data: Data,
    out: Out,
    model: Annotated[str, typer.Option(help="The embedder, or the model to train apart.")],
    videos_root: VideosRoot = None,
    policy: PolicyName = "default",
    split: Split = "train",
    epochs: Epochs = 2,
    batch: Batch = 8,
    accumulate: Accumulate = 1,
    lr: Rate = 1e-4,
    rank: Rank = 64,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate", help="A model of its own that reads the whole prompt, as in the paper."
        ),
    ] = False,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A trained adapter to go on from, of its own rank; a directory or hub id."
        ),
    ] = None,
    boolean_weight: Annotated[
        float, typer.Option(min=0, help="Of an added loss on the answer's booleans alone.")
    ] = 0.0,
    caption_noise: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of clips whose captions get words that say nothing, so that text in a video "
            "moves S2 less.",
        ),
    ] = 0.0,
    bf16: Bf16 = False,
    seed: Seed = 0,
    frame_pixels: FramePixels = 448 * 448,
    layout: LayoutOption = LayoutName.policy_first,
    policy_encoding: EncodingOption = EncodingName.sequential,
    prune: PruneOption = None,
    prune_layer: PruneLayer = None,
    random_prune: RandomPrune = False,
) -> None:
    """Train S2 on reasoning traces: an adapter that continues S1's cache, or a separate model.

    Records need captions, scores, and a response with DESCRIPTION, EXPLANATION and GUARDRAIL
    (`safelens curate traces` writes them).
    """
    from safelens.train.caption_noise import CaptionNoise
    from safelens.train.clips import augmented, has_trace
    from safelens.train.loop import processes
    from safelens.train.reasoner import (
        add_adapter,
        merge_adapter,
        train_reasoner,
        train_separate_reasoner,
    )
    from safelens.vlm_loading import ModelLoadError

    encoding = encoding_of(policy_encoding, prune, prune_layer, random_prune=random_prune)
    if adapter is not None and separate:
        fail("--adapter continues S1's cache, --separate is a model apart: give one of them")
    if not rank and not separate and adapter is None:
        fail("--rank 0: what continues S1's cache is an adapter; give it a rank, or add --separate")
    records, used = _records(data, videos_root, policy, split)
    ready = [record for record in records if has_trace(record, used)]
    if len(ready) < len(records):
        typer.echo(
            f"{len(records) - len(ready)} records without captions, scores or trace left out",
            err=True,
        )
    if not ready:
        fail(f"no record of {data} has captions, scores and a reasoned response")
    vlm = load_vlm(model, frame_pixels)
    check_layer(vlm, encoding)
    config = _config(len(ready), epochs, batch, accumulate, lr, bf16, seed)
    noise = CaptionNoise(vlm.tokenizer, used, share=caption_noise)
    with _clips(ready, batch, seed) as batches, stopping():

        def batch_at(number: int) -> list[AugmentedClip]:
            return noise.noisy(augmented(vlm, used, batches(number)), f"{seed}/{number}")

        if separate:
            if rank:
                add_adapter(vlm, rank, 2 * rank, seed=seed)
            train_separate_reasoner(
                vlm,
                used,
                batch_at,
                out,
                config,
                layout=layout.value,
                encoding=encoding,
                random_keep=random_prune,
            )
            if rank:
                merge_adapter(vlm)
            if processes().is_main_process:
                vlm.model.save_pretrained(str(out / "model"))
                vlm.processor.save_pretrained(str(out / "model"))
        else:
            try:
                train_reasoner(
                    vlm,
                    used,
                    batch_at,
                    out,
                    config,
                    start=adapter,
                    rank=rank,
                    alpha=2 * rank,
                    boolean_weight=boolean_weight,
                    layout=layout.value,
                    encoding=encoding,
                    random_keep=random_prune,
                )
            except ModelLoadError as error:
                fail(str(error))
    _done(out / ("model" if separate else "adapter"), batches.left_out)


def _records(
    data: Path, videos_root: Path | None, policy: str, split: str, *, required: bool = True
) -> tuple[list[Record], Policy]:
    """Records of one part whose labels are known for every category, and the policy."""
    read, used = read_data(data, videos_root, policy)
    part = [r for r in read.records if r.split == split or (r.split is None and split == "train")]
    found = [record for record in part if not record.undecided]
    if required:
        warn_left_out(read.left_out + len(part) - len(found))
        if not found:
            fail(f"{data} has no records in the part {split!r}")
    return found, used


@contextmanager
def _clips(records: list[Record], batch: int, seed: int) -> Iterator[ClipBatches]:
    from safelens.train.clips import ClipBatches

    with video_reader() as reader:
        batches = ClipBatches(records, reader, size=batch, seed=seed)
        try:
            yield batches
        finally:
            batches.close()


def _config(
    records: int, epochs: float, batch: int, accumulate: int, lr: float, bf16: bool, seed: int
) -> LoopConfig:
    from safelens.train.loop import LoopConfig, processes

    size = min(batch, records) * accumulate * processes().num_processes
    steps = max(1, round(epochs * records / size))
    return LoopConfig(
        steps=steps,
        warmup=max(1, round(0.03 * steps)),
        lr=lr,
        muon_lr=None,
        checkpoint_every=max(1, min(100, steps // 10)),
        accumulate=accumulate,
        bf16=bf16,
        seed=seed,
    )


def _done(path: Path, left_out: dict[str, str]) -> None:
    report_left_out(left_out)
    typer.echo(str(path))
