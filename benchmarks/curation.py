"""Does curation find wrong labels, and does training without them help? Measured on SafeWorld.

    python -m benchmarks.curation [--work out/tiny] [--seeds 3] [--out reports]

Trains, for every seed, the small model of `recipes.tiny` on clips with wrong labels, asks which labels
influence finds, and trains again on what the filter keeps and on the truth. Every stage's result is kept
in --work; an interrupted run goes on. Writes reports/curation.json and reports/curation.md, with the figures of
reports/influence.json (`python -m benchmarks.influence`) and of the bundle (`python -m recipes.tiny.check`).

Knows the experiment. The steps themselves are those of the recipe and of `safelens.curate`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from sklearn.metrics import roc_auc_score

from benchmarks.noise_scores import noise_auroc
from recipes.machine import in_words, machine
from recipes.stages import Stage, run
from recipes.tiny import curation, embedder
from recipes.tiny.__main__ import BASE, CAPTIONS, HELD, LEARNING, READING, TRAIN, VAL
from recipes.tiny.data import DrawnReader
from recipes.tiny.fast import screened
from recipes.tiny.parts import (
    labelled_records,
    load_vlm,
    policy,
    sets_of,
    use_all_cores,
    with_captions,
)
from safelens.curate.crossfit import cross_fitted_scores
from safelens.curate.filtering import keep
from safelens.curate.passes import InfluenceStore
from safelens.curate.samples import RecordSamples
from safelens.curate.scores import training_scores
from safelens.data.records import read_records
from safelens.evaluate.spread import spread as mean_and_deviation
from safelens.policy import SAFE
from safelens.probe import ProbeConfig, fit_probe
from safelens.train.embedder import Turns
from safelens.train.sequences import teacher_forced
from safelens.train.state_store import StateStore
from safelens.train.states import States

CLIPS = 2_600
"""Labelled clips of a seed; three seeds share none, and the captioner has described them all."""
TESTED = 1_600
"""Clips of ``held`` on which accuracy is measured; nothing else of them is used."""
VALIDATION = 1_000
FOLDS = 5
SCREENING = LEARNING | {"see": 160, "steps": 320, "deliberate": False}
"""Of the embedders that are compared: two epochs without the policy and two with it."""
FILTERING = {"score": "whitened", "false_drop_rate": 0.05}
PROBE = {"steps": 600, "lr": 1e-3, "balanced": False}
MAIN = ("confusion", 0.25)
OTHERS = (("symmetric", 0.25), ("confusion", 0.10), ("confusion", 0.40))


def class_accuracy(truth: list[tuple[str, ...]], answers: list[str | None]) -> dict[str, float]:
    """Accuracy of each class, and their unweighted mean under "average".

    A clip with several labels counts under its first and is right if the answer is one of them.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for labels, answer in zip(truth, answers, strict=True):
        wanted = labels or (SAFE,)
        hits[wanted[0]].append(answer in wanted)
    found = {name: float(np.mean(rows)) for name, rows in sorted(hits.items())}
    return found | {"average": float(np.mean(list(found.values())))}


def fit_and_test(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a probe on an embedder's states under the labels it was trained on; accuracy on the truth."""
    use_all_cores()
    model = next(needs[name] for name in ("screening", "filtered", "clean") if name in needs)
    vlm, sets = load_vlm(model), sets_of(needs)
    reader = DrawnReader(sets, "small")
    store = StateStore(out / "states", {"model": model.name})
    states = screened(vlm, labelled_records(needs), reader, store)
    test = sets["held"].records("held")[: settings["tested"]]
    seen = screened(vlm, test, reader, store)
    labels = tuple(policy().labels)
    config = ProbeConfig(input_dim=vlm.hidden_size, labels=labels)
    probe = fit_probe(
        states.question, None, states.labels, config, seed=settings["seed"], **settings["probe"]
    ).probe
    answers = [labels[i] for i in probe.predict(seen.question).argmax(1)]
    accuracy = class_accuracy([r.labels for r in test], list(answers))
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n")


def judge(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: class probabilities of the labelled clips out of fold, which cleanlab asks for.

    By probes on the states of the very model that influence is asked of, at the end of its prompt.
    """
    use_all_cores()
    vlm = load_vlm(needs["noisy"])
    turns = Turns(vlm, policy())
    records = with_captions(labelled_records(needs), needs)
    samples = RecordSamples(
        records, turns, DrawnReader(sets_of(needs), "small"), read_captions=True
    )
    tokens = len(turns.closing)
    states = []
    for start in track(range(0, len(records), 16), description="states"):
        examples = [samples.example(i) for i in range(start, min(start + 16, len(records)))]
        with torch.no_grad():
            scored = teacher_forced(vlm, turns.head, examples)
        for row, [(answer, _)] in enumerate(scored.answers):
            states.append(scored.hidden[row, answer - tokens : answer].half())
    seen = States(
        [r.id for r in records],
        torch.stack(states),
        np.zeros((len(records), 0)),
        torch.tensor(samples.labels),
    )
    scores = cross_fitted_scores(
        seen,
        range(len(records)),
        tuple(policy().labels),
        folds=settings["folds"],
        seed=settings["seed"],
        **settings["probe"],
    )
    np.save(out / "out_of_fold.npy", scores.scores.numpy())


@dataclass(frozen=True)
class Trial:
    """The stages of one seed under one kind of noise."""

    labels: Stage
    influence: Stage
    judged: Stage
    filter: Stage
    noisy: Stage
    filtered: Stage
    clean: Stage


def trial(kind: str, rate: float, seed: int) -> Trial:
    """Declare the stages; nothing is run."""

    def given(noise: float) -> Stage:
        settings = {"noise": noise, "kind": kind, "seed": seed}
        some = {"first": seed * CLIPS, "clips": CLIPS}
        return Stage("labels", curation.draw_labels, settings | some, (TRAIN,))

    def tested(name: str, data: Stage) -> Stage:
        learned = Stage(
            name, embedder.learn_labels, SCREENING | {"seed": seed}, (TRAIN, data, BASE)
        )
        settings = {"seed": seed, "tested": TESTED, "probe": PROBE}
        return Stage("tested", fit_and_test, settings, (TRAIN, HELD, data, learned))

    labels = given(rate)
    # Two epochs.
    reader = Stage(
        "noisy",
        embedder.learn_labels,
        READING | {"steps": 160, "seed": seed},
        (TRAIN, labels, BASE, CAPTIONS),
    )
    influence = Stage(
        "influence",
        curation.find_influence,
        {"rank": 16, "seed": 0, "batch": 16, "val": VALIDATION, "read_captions": True},
        (TRAIN, VAL, labels, reader, CAPTIONS),
    )
    judged = Stage(
        "judged",
        judge,
        {"folds": FOLDS, "seed": seed, "probe": PROBE},
        (TRAIN, labels, reader, CAPTIONS),
    )
    kept = Stage("filter", curation.filter_labels, FILTERING, (labels, influence))
    return Trial(
        labels,
        influence,
        judged,
        kept,
        tested("screening", labels),
        tested("filtered", kept),
        tested("clean", given(0.0)),
    )


def stages_of(seeds: int) -> list[Stage]:
    """All that the report needs, the main experiment of every seed first."""
    main = [trial(*MAIN, seed) for seed in range(seeds)]
    others = [trial(*other, seed) for seed in range(seeds) for other in OTHERS]
    return [
        stage
        for t in main
        for stage in (t.influence, t.judged, t.filter, t.noisy, t.filtered, t.clean)
    ] + [stage for t in others for stage in (t.influence, t.judged, t.filter)]


def detection(t: Trial, root: Path) -> dict[str, Any]:
    """How well every score finds the wrong labels of a trial, and what the filter dropped."""
    records = {r.id: r for r in read_records(t.labels.folder(root) / "records.jsonl")}
    store = InfluenceStore.open(t.influence.folder(root) / "passes")
    found = training_scores([store], [1.0], len(policy().labels))
    wrong = torch.tensor([records[name].mislabelled for name in found.ids])
    rows = {part: store.rows(part) for part in ("train", "val")}
    z = {part: torch.tensor(table["z"].to_pylist()) for part, table in rows.items()}
    judged = torch.from_numpy(np.load(t.judged.folder(root) / "out_of_fold.npy"))
    every = noise_auroc(
        z["train"],
        z["val"],
        found.labels,
        torch.tensor(rows["val"]["label"].to_pylist()),
        found.losses,
        wrong,
        pred_probs={"out of fold": judged},
        more=found.averages,
    )
    dropped = {}
    for score, averages in found.averages.items():
        least = found.least(score, FILTERING["false_drop_rate"])
        drop = ~keep(averages, least)
        margin = torch.minimum(averages.own - least.own, averages.all - least.all)
        both = int((drop & wrong).sum())
        dropped[score] = {
            "share": float(drop.float().mean()),
            "precision": both / max(1, int(drop.sum())),
            "recall": both / max(1, int(wrong.sum())),
        }
        every[f"{score}, as the filter reads it"] = float(
            roc_auc_score(wrong.numpy(), -margin.numpy())
        )
    return {"wrong": float(wrong.float().mean()), "auroc": every, "dropped": dropped}


HEADLINE = {
    "influence": "whitened, as the filter reads it",
    "tracin": "tracin, as the filter reads it",
    "cleanlab": "cleanlab self_confidence, out of fold",
    "cleanlab_margin": "cleanlab normalized_margin, out of fold",
    "loss": "loss",
}
"""Those that the report puts side by side; `auroc` holds all. Of cleanlab its default method and the one that
does best here, on the probabilities that it asks for. The filter reads how far the worse of its two averages
is above its bound."""


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Values with mean and sample standard deviation of those that are known."""
    return {"values": list(values), **mean_and_deviation(values)}


def over_seeds(found: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Each figure's values with mean and deviation."""
    return {name: spread([one[name] for one in found]) for name in found[0]}


def accuracies(stages: Sequence[Stage], root: Path) -> list[dict[str, float]]:
    """Class accuracies and their average of tested models."""
    return [json.loads((stage.folder(root) / "accuracy.json").read_text()) for stage in stages]


def figures(seeds: int, root: Path) -> dict[str, Any]:
    """All that the report says of SafeWorld."""
    trials = [trial(*MAIN, seed) for seed in range(seeds)]
    by_noise = {}
    for kind, rate in (MAIN, *OTHERS):
        some = [trial(kind, rate, seed) for seed in range(seeds)]
        done = [t for t in some if t.judged.done(root) and t.influence.done(root)]
        if not done:
            continue
        found = [detection(t, root) for t in done]
        by_noise[f"{kind} {rate:.0%}"] = {
            "seeds": len(done),
            "wrong": spread([one["wrong"] for one in found]),
            "auroc": over_seeds([one["auroc"] for one in found]),
            "dropped": {
                score: over_seeds([one["dropped"][score] for one in found])
                for score in ("whitened", "tracin")
            },
        }
    main = by_noise[f"{MAIN[0]} {MAIN[1]:.0%}"]
    tested = {
        "noisy": accuracies([t.noisy for t in trials], root),
        "filtered": accuracies([t.filtered for t in trials], root),
        "clean": accuracies([t.clean for t in trials], root),
    }
    average = {name: [one["average"] for one in found] for name, found in tested.items()}
    gains = [f - n for f, n in zip(average["filtered"], average["noisy"], strict=True)]
    leads = [c - n for c, n in zip(average["clean"], average["noisy"], strict=True)]
    return {
        "noise_auroc": {name: main["auroc"][key] for name, key in HEADLINE.items()},
        "avg_acc": average,
        "class_acc": {name: over_seeds(found) for name, found in tested.items()},
        "filtered_minus_noisy": spread(gains),
        "clean_minus_noisy": spread(leads),
        "recovered": spread([g / lead for g, lead in zip(gains, leads, strict=True)]),
        "noise": by_noise,
    }


def written(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        "# Curation on SafeWorld",
        "",
        report["about"],
        "",
        f"Machine: {in_words(report['machine'])}.",
        "",
    ]
    lines += [
        "## Which labels are wrong",
        "",
        "Area under the ROC curve, mean ± deviation over seeds:",
        "",
    ]
    names = list(report["noise"])
    lines += ["| score | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for name, key in HEADLINE.items():
        cells = [_mean(report["noise"][n]["auroc"][key], "{:.3f}") for n in names]
        lines.append(f"| {name} ({key}) | " + " | ".join(cells) + " |")
    lines += ["", "What the filter dropped:", ""]
    lines += ["| noise | score | share dropped | precision | recall |", "|---|---|---|---|---|"]
    for name in names:
        for score, dropped in report["noise"][name]["dropped"].items():
            cells = [_mean(dropped[key], "{:.1%}") for key in ("share", "precision", "recall")]
            lines.append(f"| {name} | {score} | " + " | ".join(cells) + " |")
    lines += ["", "## What the filter is worth", "", "Class accuracy of embedder and probe:", ""]
    lines += ["| class | noisy | filtered | clean |", "|---|---|---|---|"]
    for label in report["class_acc"]["noisy"]:
        cells = [
            _mean(report["class_acc"][n][label], "{:.1%}") for n in ("noisy", "filtered", "clean")
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    gain, lead = report["filtered_minus_noisy"], report["clean_minus_noisy"]
    lines += [
        "",
        f"Filtered over noisy: {_mean(gain, '{:+.1%}')}; clean over noisy: {_mean(lead, '{:+.1%}')}; "
        f"so filtering recovers {_mean(report['recovered'], '{:.0%}')} of what the wrong labels cost.",
        "",
        "## Exactness",
        "",
        f"- Per-sample gradients in float32 against plain autograd in float64: relative error at most "
        f"{report['influence_relative_error']:.1e}.",
        f"- Decisions of one streaming pass and of the full matrix that agree: {report['decision_agreement']:.1%}.",
        f"- S2 over S1 on the hard clips of `recipes/tiny/check.json`: {report['s2_minus_s1_hard']:+.1%}.",
        "",
        "Time, memory and agreement with other libraries: `reports/influence.json`.",
    ]
    return "\n".join(lines) + "\n"


def _mean(found: dict[str, Any], form: str) -> str:
    deviation = found["sd"]
    return form.format(found["mean"]) + (
        "" if deviation is None else f" ± {form.format(deviation).lstrip('+')}"
    )


def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/tiny"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reports"))
    args = parser.parse_args()
    run(*stages_of(args.seeds), root=args.work)
    exact = json.loads((args.out / "influence.json").read_text())
    check = json.loads(Path("recipes/tiny/check.json").read_text())
    report = {
        "command": "python -m benchmarks.curation",
        "about": (
            f"{CLIPS} labelled clips a seed, {args.seeds} seeds; accuracy on {TESTED} other clips under "
            "the truth. Wrong labels as annotators confuse classes, or any other class (symmetric)."
        ),
        "machine": machine(),
        "influence_relative_error": exact["gradients"]["safelens"]["worst"],
        "decision_agreement": min(
            found["decision_agreement"] for found in exact["streaming"].values()
        ),
        "s2_minus_s1_hard": s2_minus_s1(check),
    } | figures(args.seeds, args.work)
    args.out.mkdir(exist_ok=True)
    (args.out / "curation.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "curation.md").write_text(written(report))
    print(written(report))


def s2_minus_s1(check: dict[str, Any]) -> float:
    """Difference of accuracy over all clips that are not plain."""
    table = check["S1, S2, cascade by difficulty"]
    hard = [row for name, row in table.items() if name != "plain"]
    clips = sum(row[3] for row in hard)
    return float(sum((row[1] - row[0]) * row[3] for row in hard) / clips)


if __name__ == "__main__":
    main()
