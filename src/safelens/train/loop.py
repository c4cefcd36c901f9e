"""The training loop: optimizers, schedule, checkpoints, exact resume, progress, several processes.

Knows parameters and a function that gives the loss of a batch by its number. Knows nothing of data, nor of models
but in which form they are trained: the caller draws its batch from that number, so a resumed run sees the very same batches.

Processes started by `accelerate launch` each take other batches; their gradients are averaged by hand,
because a shared prompt prefix runs parts of the model apart, which a wrapper around its forward misses.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from safelens.train.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import PartialState

    from safelens.vlm import VisionLanguageModel


class TrainingError(Exception):
    """Training cannot go on; the message says what to change."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how hard to train.

    Attributes:
        steps: optimizer steps.
        warmup: steps of linear warm-up; a cosine to ``final`` of the peak follows.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon on two-dimensional weights; None trains all with AdamW.
        weight_decay: AdamW's and Muon's.
        clip: gradient norm bound.
        final: last learning rate as a fraction of the peak.
        checkpoint_every: steps between checkpoints.
        accumulate: batches whose gradients are averaged in one step, in each process.
        bf16: computes in bfloat16 where that is safe; weights stay as they are.
        seed: of dropout and the like; batches are the caller's.
    """

    steps: int
    warmup: int = 50
    lr: float = 1e-3
    muon_lr: float | None = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    final: float = 0.05
    checkpoint_every: int = 100
    accumulate: int = 1
    bf16: bool = False
    seed: int = 0


def processes() -> PartialState:
    """This process among those that were launched together, and its device."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def load_for_training(source: str, frame_pixels: int) -> VisionLanguageModel:
    """The model in float32: bfloat16 weights would lose small updates. Raises ModelLoadError."""
    from safelens.vlm import VisionLanguageModel

    return VisionLanguageModel.load(
        source, device=processes().device, dtype=torch.float32, frame_pixels=frame_pixels
    )


def optimizers(
    named: Iterable[tuple[str, nn.Parameter]], config: LoopConfig
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the two-dimensional weights that are no embeddings or heads."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        table = any(part in name for part in ("embed", "lm_head", "shared", "pos_"))
        muon = config.muon_lr is not None and parameter.ndim == 2 and not table
        (matrices if muon else others).append(parameter)
    found: list[torch.optim.Optimizer] = []
    if others:
        found.append(
            torch.optim.AdamW(
                others, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
            )
        )
    if matrices:
        assert config.muon_lr is not None
        found.append(Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
    return found


def rate(step: int, config: LoopConfig) -> float:
    """Learning rate of a step as a fraction of the peak: warm-up, then cosine."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def fit(
    module: nn.Module,
    loss_of_batch: Callable[[int], dict[str, torch.Tensor]],
    config: LoopConfig,
    out: Path,
    *,
    title: str,
) -> None:
    """Train ``module``'s trainable parameters; resumes from ``out`` if it holds a checkpoint.

    Of W processes that accumulate A batches, process r computes in step s the batches
    (s A + a) W + r for a = 0..A-1. The loss of a step is the mean of its batches' losses.

    Args:
        module: its parameters with ``requires_grad`` are trained and checkpointed.
        loss_of_batch: number of a batch to named losses; "loss" is minimized.
        config: see :class:`LoopConfig`.
        out: directory for ``checkpoint.pt``, ``log.jsonl`` and TensorBoard's files.
        title: shown beside the progress bar.

    Raises:
        TrainingError: the checkpoint is of another model or division of the work, the loss is no
            number, or the disk is full.
    """
    state = processes()
    out.mkdir(parents=True, exist_ok=True)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    opts = optimizers(trained.items(), config)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]
    division = {"processes": state.num_processes, "accumulate": config.accumulate}
    start = _resume(out / "checkpoint.pt", trained, opts, division)
    module.train()
    with _shown(title, config.steps, start, out, state) as show:
        for step in range(start, config.steps):
            began = time.perf_counter()
            for opt, tops in zip(opts, peaks, strict=True):
                for group, top in zip(opt.param_groups, tops, strict=True):
                    group["lr"] = top * rate(step, config)
                opt.zero_grad(set_to_none=True)
            losses = _accumulated(loss_of_batch, step, config, state)
            _average_gradients(trained.values(), state)
            norm = nn.utils.clip_grad_norm_(trained.values(), config.clip)
            if not math.isfinite(losses["loss"]) or not bool(norm.isfinite()):
                raise TrainingError(
                    f"{title}, step {step}: loss {losses['loss']}, gradient norm {float(norm)}; lower "
                    f"the learning rate or train in float32, and go on from {out / 'checkpoint.pt'}"
                )
            for opt in opts:
                opt.step()
            seconds = time.perf_counter() - began
            show(
                step, {"norm": float(norm), **losses, "lr": rate(step, config), "seconds": seconds}
            )
            last = (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps
            if last and state.is_main_process:
                _save(out / "checkpoint.pt", step + 1, trained, opts, division)
    module.eval()
    state.wait_for_everyone()


def _accumulated(
    loss_of_batch: Callable[[int], dict[str, torch.Tensor]],
    step: int,
    config: LoopConfig,
    state: PartialState,
) -> dict[str, float]:
    """Backward through this process's batches of a step; their losses, meaned over all processes."""
    found: dict[str, list[torch.Tensor]] = {}
    for part in range(config.accumulate):
        batch = (step * config.accumulate + part) * state.num_processes + state.process_index
        torch.manual_seed(config.seed * 1_000_003 + batch)
        with torch.autocast(state.device.type, torch.bfloat16, enabled=config.bf16):
            losses = loss_of_batch(batch)
        (losses["loss"] / config.accumulate).backward()
        for name, value in losses.items():
            found.setdefault(name, []).append(value.detach().float())
    meaned = [torch.stack(values).mean() for values in found.values()]
    _average(meaned, state)
    return {name: float(value) for name, value in zip(found, meaned, strict=True)}


def _average_gradients(parameters: Iterable[nn.Parameter], state: PartialState) -> None:
    """A parameter that this process's batches did not use counts as zero: every process takes part."""
    if state.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            _average([parameter.grad], state)


def _average(tensors: list[torch.Tensor], state: PartialState) -> None:
    """Replace each tensor by its mean over the processes."""
    if state.num_processes > 1:
        from accelerate.utils import reduce

        for tensor in tensors:
            tensor.copy_(reduce(tensor, "mean"))


@contextmanager
def _shown(
    title: str, steps: int, start: int, out: Path, state: PartialState
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Progress bar, log.jsonl and TensorBoard, of the main process alone."""
    if not state.is_main_process:
        yield lambda step, row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    _forget_after(out / "log.jsonl", start)
    board: Any = SummaryWriter(str(out / "tensorboard"), purge_step=start)
    with Progress(*columns) as progress, (out / "log.jsonl").open("a") as log, board:
        bar = progress.add_task(title, total=steps, completed=start)

        def show(step: int, row: dict[str, float]) -> None:
            log.write(json.dumps({"step": step} | {k: round(v, 4) for k, v in row.items()}) + "\n")
            log.flush()
            for name, value in row.items():
                board.add_scalar(name, value, step)
            progress.update(bar, completed=step + 1, description=f"{title} {row['loss']:.3f}")

        yield show


def _save(
    path: Path,
    step: int,
    trained: dict[str, nn.Parameter],
    opts: list[torch.optim.Optimizer],
    division: dict[str, int],
) -> None:
    state = {
        "step": step,
        "weights": {n: p.detach() for n, p in trained.items()},
        "optimizers": [opt.state_dict() for opt in opts],
        **division,
    }
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"{path}: cannot be written ({error}); make room and go on: what was there is whole"
        ) from error


def _resume(
    path: Path,
    trained: dict[str, nn.Parameter],
    opts: list[torch.optim.Optimizer],
    division: dict[str, int],
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["weights"].keys() != trained.keys():
        raise TrainingError(
            f"{path} is a checkpoint of another model; remove it or choose another folder"
        )
    other = {name: state[name] for name in division if state[name] != division[name]}
    if other:
        raise TrainingError(
            f"{path} was made with {other}, now {division}: batches would differ; continue as it was "
            "begun, or choose another folder"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["weights"][name])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    return int(state["step"])


def _forget_after(log: Path, step: int) -> None:
    """Drop the rows of steps that were run after the last checkpoint: they will be run again."""
    if log.exists():
        rows = log.read_text().splitlines(keepends=True)
        log.write_text(
            "".join(r for r in rows if r.endswith("\n") and json.loads(r)["step"] < step)
        )
