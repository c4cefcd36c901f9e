"""The training loop: optimizers, schedule, checkpoints, exact resume, progress.

Knows parameters and a function that gives the loss of a step. Knows nothing of models or data: the
caller draws its batch from the step's number, so a resumed run sees the very same batches.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

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
    """

    steps: int
    warmup: int = 50
    lr: float = 1e-3
    muon_lr: float | None = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    final: float = 0.05
    checkpoint_every: int = 100


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
    loss_of_step: Callable[[int], dict[str, torch.Tensor]],
    config: LoopConfig,
    out: Path,
    *,
    title: str,
) -> None:
    """Train ``module``'s trainable parameters; resumes from ``out`` if it holds a checkpoint.

    Args:
        module: its parameters with ``requires_grad`` are trained and checkpointed.
        loss_of_step: step number to named losses; "loss" is minimized.
        config: see :class:`LoopConfig`.
        out: directory for ``checkpoint.pt`` and ``log.jsonl``.
        title: shown beside the progress bar.
    """
    out.mkdir(parents=True, exist_ok=True)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    opts = optimizers(trained.items(), config)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]
    start = _resume(out / "checkpoint.pt", trained, opts)
    _forget_after(out / "log.jsonl", start)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    module.train()
    with Progress(*columns) as progress, (out / "log.jsonl").open("a") as log:
        bar = progress.add_task(title, total=config.steps, completed=start)
        for step in range(start, config.steps):
            began = time.perf_counter()
            for opt, tops in zip(opts, peaks, strict=True):
                for group, top in zip(opt.param_groups, tops, strict=True):
                    group["lr"] = top * rate(step, config)
                opt.zero_grad(set_to_none=True)
            losses = loss_of_step(step)
            losses["loss"].backward()
            norm = nn.utils.clip_grad_norm_(trained.values(), config.clip)
            for opt in opts:
                opt.step()
            row = {"step": step, "norm": round(float(norm), 4)}
            row |= {k: round(float(v.detach()), 4) for k, v in losses.items()}
            row["seconds"] = round(time.perf_counter() - began, 3)
            log.write(json.dumps(row) + "\n")
            log.flush()
            progress.update(bar, completed=step + 1, description=f"{title} {row['loss']:.3f}")
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                _save(out / "checkpoint.pt", step + 1, trained, opts)
    module.eval()


def _save(
    path: Path, step: int, trained: dict[str, nn.Parameter], opts: list[torch.optim.Optimizer]
) -> None:
    state = {
        "step": step,
        "weights": {n: p.detach() for n, p in trained.items()},
        "optimizers": [opt.state_dict() for opt in opts],
        "random": torch.get_rng_state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(path: Path, trained: dict[str, nn.Parameter], opts: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["weights"].keys() != trained.keys():
        raise ValueError(
            f"{path} is a checkpoint of another model; remove it or choose another folder"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["weights"][name])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    torch.set_rng_state(state["random"])
    return int(state["step"])


def _forget_after(log: Path, step: int) -> None:
    """Drop the rows of steps that were run after the last checkpoint: they will be run again."""
    if log.exists():
        rows = log.read_text().splitlines(keepends=True)
        log.write_text(
            "".join(r for r in rows if r.endswith("\n") and json.loads(r)["step"] < step)
        )
