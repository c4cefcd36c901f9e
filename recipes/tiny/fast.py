"""Stage: S1's states of clips, and the probe, domain guard and out-of-fold scores fitted on them.

The clips are none that captioner or embedder were trained on: on those both are surer, and more often
right, than they will ever be again, and probe and reasoner would learn to trust them too much.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from recipes.tiny.data import DrawnReader
from recipes.tiny.embedder import labelled_records
from recipes.tiny.parts import SEED, load_vlm, policy, sets_of, use_all_cores
from safelens.data.records import Record, write_records
from safelens.domain import DomainGuard
from safelens.probe import ProbeConfig, RollingAttentionProbe, fit_probe
from safelens.train.clips import decoded_once
from safelens.train.states import States, collect_states
from safelens.vlm import VisionLanguageModel


def fit(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: Algorithm 1, lines 9-13, on the kept part of ``held``."""
    use_all_cores()
    vlm = load_vlm(needs["embedder"])
    sets = sets_of(needs)
    reader = DrawnReader(sets, "small")
    records = [r for r in labelled_records(needs) if r.video.startswith("held/")]
    fresh_records = sets["val"].records("val")
    states = _states(vlm, records, reader)
    fresh = _states(vlm, fresh_records, reader)
    probe = _probe(states, np.arange(len(records)), settings, SEED)
    probe.save(out / "probe")
    right = (probe.predict(fresh.question.float()).argmax(1) == fresh.labels).float().mean()
    print(f"probe on fresh clips: accuracy {float(right):.3f}")
    (out / "probe.json").write_text(json.dumps({"fresh_accuracy": float(right)}) + "\n")
    DomainGuard.fit(
        states.features, fresh.features, false_refusal_rate=settings["false_refusal_rate"]
    ).save(out / "domain.safetensors")
    scores = _out_of_fold(states, settings)
    classes = policy().labels
    write_records(
        out / "records.jsonl",
        (
            record.model_copy(update={"scores": dict(zip(classes, row, strict=True))})
            for record, row in zip(records, scores.tolist(), strict=True)
        ),
    )


def _states(vlm: VisionLanguageModel, records: list[Record], reader: DrawnReader) -> States:
    with Progress() as progress:
        bar = progress.add_task("states", total=len(records))
        return collect_states(
            vlm,
            policy(),
            decoded_once(records, reader, 16, {}),
            on_progress=lambda done: progress.advance(bar, done),
        )


def _probe(
    states: States, rows: np.ndarray, settings: dict[str, Any], seed: int
) -> RollingAttentionProbe:
    """A probe trained on some of the rows.

    A learning rate of 1e-4 (the sources') has not converged after 1000 steps on these states.
    """
    config = ProbeConfig(input_dim=states.question.shape[-1], labels=policy().labels)
    chosen = torch.from_numpy(rows)
    return fit_probe(
        states.question[chosen].float(),
        None,
        states.labels[chosen],
        config,
        seed=seed,
        balanced=False,
        steps=settings["steps"],
        lr=settings["lr"],
        patience=settings["patience"],
    ).probe


def _out_of_fold(states: States, settings: dict[str, Any]) -> torch.Tensor:
    """Scores (N, C) of each clip by a probe that did not train on it."""
    order = np.random.default_rng(SEED).permutation(len(states.labels))
    scores = torch.zeros(len(order), len(policy().labels))
    for k in range(settings["folds"]):
        held = order[k :: settings["folds"]]
        probe = _probe(states, np.setdiff1d(order, held), settings, SEED + k)
        scores[held] = probe.predict(states.question[held].float())
    return scores
