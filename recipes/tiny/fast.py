"""Stage: S1's states of clips, and the probe, domain guard and out-of-fold scores fitted on them.

The clips are none that captioner or embedder were trained on: on those both are surer, and more often
right, than they will ever be again, and probe and reasoner would learn to trust them too much.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import Progress

from recipes.tiny.data import DrawnReader
from recipes.tiny.parts import SEED, labelled_records, load_vlm, policy, sets_of, use_all_cores
from safelens.curate.crossfit import cross_fitted_scores
from safelens.data.records import Record, write_records
from safelens.domain import DomainGuard
from safelens.domain_features import domain_views
from safelens.probe import ProbeConfig, fit_probe
from safelens.train.state_store import StateStore
from safelens.train.states import States, collect_states
from safelens.vlm import VisionLanguageModel


def fit(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: Algorithm 1, lines 9-13, on the kept part of ``held``.

    A learning rate of 1e-4 (the probe's sources') has not converged after 1000 steps on these states.
    """
    use_all_cores()
    vlm = load_vlm(needs["embedder"])
    sets = sets_of(needs)
    reader = DrawnReader(sets, "small")
    records = [r for r in labelled_records(needs) if r.video.startswith("held/")]
    store = StateStore(out / "states", {"model": needs["embedder"].name})
    states = screened(vlm, records, reader, store)
    fresh = screened(vlm, sets["val"].records("val"), reader, store)
    labels = tuple(policy().labels)
    fitting = {name: settings[name] for name in ("steps", "lr", "patience")} | {"balanced": False}
    found = fit_probe(
        states.question,
        None,
        states.labels,
        ProbeConfig(input_dim=vlm.hidden_size, labels=labels),
        seed=SEED,
        **fitting,
    )
    found.probe.save(out / "probe")
    right = (found.probe.predict(fresh.question).argmax(1) == fresh.labels).float().mean()
    (out / "probe.json").write_text(json.dumps({"fresh_accuracy": float(right)}) + "\n")
    print(f"probe on fresh clips: accuracy {float(right):.3f}")
    DomainGuard.fit(
        states.features,
        fresh.features,
        false_refusal_rate=settings["false_refusal_rate"],
        views=domain_views(vlm.hidden_size),
    ).save(out / "domain.safetensors")
    scores = cross_fitted_scores(
        states,
        range(len(records)),
        labels,
        folds=settings["folds"],
        seed=SEED,
        **fitting,
    )
    print(f"out of fold: average class accuracy {scores.accuracy:.3f}")
    write_records(
        out / "records.jsonl",
        (
            record.model_copy(update={"scores": dict(zip(labels, row, strict=True))})
            for record, row in zip(records, scores.scores.tolist(), strict=True)
        ),
    )


def screened(
    vlm: VisionLanguageModel, records: list[Record], reader: DrawnReader, store: StateStore
) -> States:
    """States of drawn clips, with a progress bar."""
    with Progress() as progress:
        bar = progress.add_task("states", total=len(records))
        return collect_states(
            vlm,
            policy(),
            records,
            reader,
            store,
            batch=16,
            on_progress=lambda done: progress.advance(bar, done),
        )
