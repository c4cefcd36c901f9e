"""Does curation find wrong labels, and does training without them help? Measured on SafeWorld.

    python -m benchmarks.curation [--work out/curation] [--base out/tiny] [--seeds 3] [--threads N]

Trains, for every seed, the small model of `recipes.tiny` on clips with wrong labels, asks which labels
influence finds, and trains again on what the filter keeps and on the truth. Every stage's result is kept
in --work; an interrupted run goes on. Writes reports/curation.json and reports/curation.md, with the figures of
reports/influence.json (`python -m benchmarks.influence`) and of the bundle (`python -m recipes.tiny.check`).

Knows the experiment. The steps themselves are those of the recipe and of `safelens.curate`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes.stages import Stage, run
from recipes.tiny import curation, embedder
from recipes.tiny.__main__ import BASE, HELD, TRAIN, VAL
from recipes.tiny.check import class_accuracy
from recipes.tiny.data import DrawnReader
from recipes.tiny.embedder import labelled_records
from recipes.tiny.parts import load_vlm, policy, sets_of, use_all_cores

from safelens.data.records import Record
from safelens.probe import ProbeConfig, RollingAttentionProbe, fit_probe
from safelens.train.clips import decoded_once
from safelens.train.states import States, collect_states

CLIPS, STEPS = 1_600, 100
TESTED = 1_600
"""Clips of ``held`` on which accuracy is measured; nothing else of them is used."""
FOLDS = 5
MAIN = ("confusion", 0.25)
OTHERS = (("symmetric", 0.25), ("confusion", 0.10), ("confusion", 0.40))


def fit_and_test(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a probe on the model's states under the labels it was trained on; accuracy on the truth."""
    vlm = load_vlm(next(needs[name] for name in ("noisy", "filtered", "clean") if name in needs))
    use_all_cores()
    sets = sets_of(needs)
    records = labelled_records(needs)
    states = _states(vlm, records, DrawnReader(sets, "small"))
    everything = _probe(states, np.arange(len(records)), settings["seed"])
    test = sets["held"].records("held")[: settings["tested"]]
    seen = _states(vlm, test, DrawnReader(sets, "small"))
    answers = [policy().labels[i] for i in everything.predict(seen.question.float()).argmax(1)]
    accuracy = class_accuracy([r.labels for r in test], list(answers))
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n")
    np.save(out / "in_sample.npy", everything.predict(states.question.float()).numpy())
    order = np.random.default_rng(settings["seed"]).permutation(len(records))
    scores = np.zeros((len(records), len(policy().labels)), dtype=np.float32)
    for fold in range(settings["folds"]):
        rows = order[fold :: settings["folds"]]
        probe = _probe(states, np.setdiff1d(order, rows), settings["seed"] + fold)
        scores[rows] = probe.predict(states.question[rows].float()).numpy()
    np.save(out / "out_of_fold.npy", scores)


def _states(vlm: Any, records: list[Record], reader: DrawnReader) -> States:
    return collect_states(vlm, policy(), decoded_once(records, reader, 16, {}))


def _probe(states: States, rows: np.ndarray, seed: int) -> RollingAttentionProbe:
    config = ProbeConfig(input_dim=states.question.shape[-1], labels=policy().labels)
    some = torch.from_numpy(rows)
    return fit_probe(
        states.question[some].float(),
        None,
        states.labels[some],
        config,
        steps=600,
        lr=1e-3,
        seed=seed,
        balanced=False,
    ).probe


@dataclass(frozen=True)
class Trial:
    """The stages of one seed under one kind of noise."""

    labels: Stage
    noisy: Stage
    influence: Stage
    tested: Stage
    filter: Stage
    filtered: Stage
    clean: Stage


def trial(kind: str, rate: float, seed: int) -> Trial:
    """Declare the stages; nothing is run."""
    training = {
        "steps": STEPS,
        "warmup": 20,
        "batch": 32,
        "lr": 1e-3,
        "muon_lr": 0.015,
        "seed": seed,
        "deliberate": False,
    }
    testing = {"seed": seed, "tested": TESTED, "folds": FOLDS}

    def given(noise: float) -> Stage:
        settings = {"noise": noise, "kind": kind, "seed": seed, "captions": False}
        first = {"first": seed * CLIPS, "clips": CLIPS}
        return Stage("labels", curation.draw_labels, settings | first, (TRAIN,))

    def learned(name: str, *data: Stage) -> Stage:
        return Stage(name, embedder.learn_labels, training, (TRAIN, *data, BASE))

    def tested(model: Stage, *data: Stage) -> Stage:
        return Stage("tested", fit_and_test, testing, (TRAIN, HELD, *data, model))

    labels = given(rate)
    noisy = learned("noisy", labels)
    influence = Stage(
        "influence",
        curation.find_influence,
        {"rank": 16, "seed": 0, "batch": 16, "val": 420},
        (TRAIN, VAL, labels, noisy),
    )
    kept = Stage("filter", curation.filter_labels, {"score": "whitened"}, (labels, influence))
    truth = given(0.0)
    return Trial(
        labels,
        noisy,
        influence,
        tested(noisy, labels),
        kept,
        tested(learned("filtered", kept), kept),
        tested(learned("clean", truth), truth),
    )


def stages_of(seeds: int) -> list[Stage]:
    """All that the report needs, the main experiment of every seed first."""
    main = [trial(*MAIN, seed) for seed in range(seeds)]
    others = [trial(*other, seed) for seed in range(seeds) for other in OTHERS]
    return [
        stage for t in main for stage in (t.tested, t.influence, t.filter, t.filtered, t.clean)
    ] + [stage for t in others for stage in (t.tested, t.influence, t.filter)]


def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/tiny"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    run(*stages_of(args.seeds), root=args.work)


if __name__ == "__main__":
    main()
