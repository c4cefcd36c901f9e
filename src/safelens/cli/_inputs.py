"""What several commands load: data sets, videos, models and S1's states, and how a failure is said.

Knows errors as messages and exit codes. Does not know what commands do with what is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from safelens.cli._options import FAILED, INTERRUPTED, LayoutName, fail

if TYPE_CHECKING:
    from safelens.assembly import Encoding
    from safelens.data.read import Dataset
    from safelens.data.records import Record
    from safelens.engine.cluster import Pool
    from safelens.engine.mapping import Run
    from safelens.policy import Policy
    from safelens.train.state_store import StateStore
    from safelens.train.states import Row, ScreenWork, States
    from safelens.video import VideoReader
    from safelens.vlm import VisionLanguageModel


def read_data(data: Path, videos_root: Path | None, policy: str) -> tuple[Dataset, Policy]:
    """The data set and the policy."""
    from safelens.data.read import read_dataset
    from safelens.policy import Policy, PolicyError

    try:
        used = Policy.load(policy)
        return read_dataset(data, used, videos_root=videos_root), used
    except (PolicyError, ValueError) as error:
        fail(str(error))


def warn_left_out(count: int) -> None:
    """Say how many entries of a data set gave nothing to work on."""
    if count:
        typer.echo(f"{count} entries left out; `safelens data check` says why", err=True)


def video_reader() -> VideoReader:
    """Samples frames as the cascade does: what is learned is what will be seen."""
    from safelens.bundle import ClipSettings
    from safelens.video import ClipOptions, VideoReader

    return VideoReader(ClipOptions(**ClipSettings().model_dump()))


def everywhere(source: str) -> str:
    """A model's directory, or hub id, as processes with other folders to be relative to find it."""
    return str(Path(source).absolute()) if Path(source).is_dir() else source


def load_vlm(source: str, frame_pixels: int) -> VisionLanguageModel:
    """The model as it is trained; ends the command where it cannot be loaded."""
    from safelens.train.loop import load_for_training
    from safelens.vlm_loading import ModelLoadError

    try:
        return load_for_training(source, frame_pixels)
    except ModelLoadError as error:
        fail(str(error))


def check_layer(vlm: VisionLanguageModel, encoding: Encoding) -> None:
    """End the command where relevance is to be measured at a layer that the model does not have."""
    from safelens.vlm_loading import ModelLoadError

    try:
        encoding.blocks(vlm)
    except ModelLoadError as error:
        fail(str(error))


def screening(
    work: ScreenWork, pool: Pool | None = None, address: str | None = None
) -> Run[Record, Row | str]:
    """How `collect` has clips screened; ends the command where the model cannot be used here."""
    from safelens.engine.mapping import run_of
    from safelens.vlm_loading import ModelLoadError

    try:
        return run_of(work, pool, address)
    except ModelLoadError as error:
        fail(str(error))


def state_store(
    folder: Path,
    model: str,
    policy: Policy,
    layout: LayoutName,
    frame_pixels: int,
    encoding: Encoding,
) -> StateStore:
    """Where S1's states are kept; for one model, policy and form of prompt. Raises TrainingError."""
    from safelens.bundle import ClipSettings
    from safelens.train.state_store import StateStore
    from safelens.vlm_loading import files_digest

    about: dict[str, object] = {
        "model": files_digest(model),
        "policy": policy.sha256,
        "layout": layout.value,
        "frame_pixels": frame_pixels,
        "clip": ClipSettings().model_dump(),
    }
    if encoding.policy == "parallel":
        about |= {"policy_encoding": "parallel", "keep": encoding.keep, "layer": encoding.layer}
    return StateStore(folder, about)


def collect(
    run: Run[Record, Row | str],
    policy: Policy,
    records: list[Record],
    store: StateStore,
    *,
    title: str = "states",
) -> States:
    """S1's states, with a bar; what has none is named."""
    from safelens.cli._interrupt import Interrupt
    from safelens.cli._progress import progress
    from safelens.train.states import gather_states

    with Interrupt() as interrupt, progress(title, len(records)) as bar:

        def on_progress(count: int) -> None:
            bar.advance(count)
            interrupt.check()

        found = gather_states(run, policy, records, store, on_progress)
    report_left_out(found.left_out)
    return found


def report_left_out(left_out: dict[str, str]) -> None:
    """Name the records that were left out, and count them."""
    for name, reason in left_out.items():
        typer.echo(f"{name}: left out: {reason}", err=True)
    if left_out:
        typer.echo(
            f"{len(left_out)} records left out: their videos cannot be read or used", err=True
        )


@contextmanager
def stopping() -> Iterator[None]:
    """Failures and Ctrl-C as messages and exit codes."""
    from safelens.engine.cluster import EngineError
    from safelens.train.loop import TrainingError

    try:
        yield
    except (TrainingError, EngineError) as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("stopped; give the same command again to go on", INTERRUPTED)
