"""From what systems answered to the report's figures.

Knows answers, seeds and how tau is chosen. Runs no model, and knows nothing of how figures are printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curation import accuracies, over_seeds, spread
from benchmarks.paper.stages import CHOICE, CHOSEN_ON, TEST, ZERO_SHOT, Seed, records_of, seed_of
from recipes.stages import Stage
from recipes.tiny.__main__ import FILTER, LABELS
from recipes.tiny.parts import policy
from safelens.calibrate import (
    Floats,
    Screening,
    class_sets,
    fit_temperature,
    tempered,
    under_shares,
)
from safelens.data.records import Record, read_records
from safelens.evaluate.answer_log import read_answers
from safelens.evaluate.answers import Answer
from safelens.evaluate.cost import costs
from safelens.evaluate.metrics import measure
from safelens.evaluate.routing import route
from safelens.evaluate.sweep import GRID, Sweep, sweep
from safelens.policy import SAFE
from safelens.reliability import ece, reliability
from safelens.risk import check_promise, control_risk
from safelens.thresholds import Thresholds
from safelens.tradeoff import operating_points, tau_for_cost

MOST_COST = 0.4
"""Of the cascade, as a share of S2 on everything."""
ALPHA = DELTA = 0.05
RESAMPLES = 200
DRAWN = 500
"""Videos of a resample, on which tau is chosen."""
SYSTEMS = ("zero_shot", "vlm_finetuned", "s1", "s1_matched", "s1_equal", "s2", "cascade")
STEPS = 100
"""Between the mix of classes that S1 was trained on and equal shares, to find where it flags as the VLM does."""

Answers = dict[str, Answer]


@dataclass(frozen=True)
class World:
    """The videos of both sets.

    Attributes:
        test: What accuracy and cost are measured on.
        choice: What temperature and tau are chosen on.
    """

    test: list[Record]
    choice: list[Record]

    @classmethod
    def of(cls, root: Path) -> World:
        """Read both."""
        return cls(records_of(TEST.folder(root)), records_of(CHOICE.folder(root)))


def given(stage: Stage, root: Path, name: str) -> Answers:
    """What was answered, by the record's id."""
    file = stage.folder(root) / "answers" / "system" / f"{name}.jsonl"
    return {answer.id: answer for answer in read_answers(file)}


@dataclass(frozen=True)
class SeedAnswers:
    """What the systems of one seed said, and the tau of their cascade."""

    seed: Seed
    root: Path
    world: World

    @cached_property
    def tau(self) -> float:
        """The most accurate on the choosing videos that costs at most `MOST_COST` in operations."""
        s1, s2 = (given(self.seed.choice, self.root, n) for n in ("screen", "deliberate"))
        records = self.world.choice[:CHOSEN_ON]
        first = [gflops(s1[r.id]) for r in records]
        second = [gflops(s2[r.id]) for r in records]
        right = [bool(s2[r.id].label in (r.labels or (SAFE,))) for r in records]
        points = operating_points(
            _screened(*probabilities(s1, records)),
            right,
            s1_cost=first,
            s2_cost=np.subtract(second, first).clip(0),
        )
        return tau_for_cost(points, most=MOST_COST).tau

    @cached_property
    def systems(self) -> dict[str, Answers]:
        """Answers on the test videos, by system."""
        s1, s2 = (given(self.seed.test, self.root, n) for n in ("screen", "deliberate"))
        tuned = given(self.seed.tuned, self.root, "generate")
        return {
            "zero_shot": given(ZERO_SHOT, self.root, "generate"),
            "vlm_finetuned": tuned,
            "s1": s1,
            "s1_matched": self._matched(s1, tuned),
            "s1_equal": self._shifted(s1, 1.0),
            "s2": s2,
            "cascade": {n: route(s1[n], s2[n], Thresholds(self.tau), "escalate") for n in s1},
        }

    def _matched(self, s1: Answers, other: Answers) -> Answers:
        """S1's answers as far towards equal shares as it flags no more safe videos than another system."""
        most = self.false_flags(other)
        shifts = (self._shifted(s1, step / STEPS) for step in reversed(range(1, STEPS + 1)))
        return next((found for found in shifts if self.false_flags(found) <= most), s1)

    def false_flags(self, answers: Answers) -> float:
        """Share of the safe test videos that are not called safe."""
        safe = [record.id for record in self.world.test if not record.labels]
        return float(np.mean([answers[name].label != SAFE for name in safe]))

    def _shifted(self, s1: Answers, towards: float) -> Answers:
        """S1's answers if classes were more equally common, as Avg ACC weighs them.

        Shares of the classes are those of the choosing videos at 0, equal at 1, and geometric means between.
        """
        labels = policy().labels
        seen = class_sets([r.labels for r in self.world.choice], labels).mean(0)
        p = np.array([[answer.scores[name] for name in labels] for answer in s1.values()])
        shares = seen ** (1 - towards)
        rows = under_shares(p, seen, shares / shares.sum())
        found = {}
        for (key, answer), row in zip(s1.items(), rows, strict=True):
            label = labels[int(row.argmax())]
            scores = dict(zip(labels, row.tolist(), strict=True))
            flags = () if label == SAFE else (label,)
            new = {"label": label, "flags": flags, "scores": scores, "confidence": float(row.max())}
            found[key] = answer.model_copy(update=new)
        return found

    @cached_property
    def sweep(self) -> Sweep:
        """The cascade on the test videos at every tau."""
        s1, s2 = self.systems["s1"], self.systems["s2"]
        taus = (*GRID, self.tau)
        return sweep(self.world.test, s1, s2, policy(), outside_domain="escalate", taus=taus)

    @cached_property
    def trained_on(self) -> dict[str, dict[str, float | None]]:
        """S1's accuracy after training on filtered and on unfiltered data, by class."""
        found: dict[str, dict[str, float | None]] = {}
        for name, stage in (
            ("unfiltered", self.seed.unfiltered),
            ("filtered", self.seed.filtered),
        ):
            [classes] = accuracies([stage], self.root)
            found[name] = {"macro_f1": None, "avg_acc": classes.pop("average"), **classes}
        return found


def class_counts(records: Sequence[Record]) -> dict[str, int]:
    """Videos of each class, those of several under each; and all of them."""
    held = Counter(name for record in records for name in record.labels or (SAFE,))
    return {name: held[name] for name in policy().labels} | {"total": len(records)}


def gflops(answer: Answer) -> float:
    """Of an answer, which must not have failed."""
    if answer.gflops is None:
        raise ValueError(f"{answer.id}: no cost, {answer.outcome}: {answer.error}")
    return answer.gflops


def probabilities(answers: Answers, records: Sequence[Record]) -> tuple[Floats, np.ndarray]:
    """S1's probabilities and which classes hold, both of shape (N, C)."""
    labels = policy().labels
    p = np.array([[answers[r.id].scores[name] for name in labels] for r in records])
    return p, class_sets([r.labels for r in records], labels)


def accuracy(records: Sequence[Record], answers: Answers) -> dict[str, float | None]:
    """Of each class (None where no video is of it), their mean, and macro F1."""
    found = measure(records, answers, policy()).single_label
    return {
        **{name: figures.accuracy for name, figures in found.classes.items()},
        "avg_acc": found.avg_acc,
        "macro_f1": found.macro_f1,
    }


def calibration(answers: Answers, records: Sequence[Record], seed: int) -> dict[str, Any]:
    """Calibration error with a temperature from videos that it is not measured on; how often the risk promise holds.

    The temperature of each half of the videos is used on the other. Beside the error stands that which confidences
    without any fault show on as many videos, in the mean of `RESAMPLES` draws. In each resample tau is chosen on
    `DRAWN` videos and the risk is that of all others. A refusal to choose promises nothing; its share stands beside.
    """
    p, truth = probabilities(answers, records)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(records))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    fits = [fit_temperature(p[half], truth[half], policy().labels) for half in halves]
    after = p.copy()
    for half, fit in zip(reversed(halves), fits, strict=True):
        after[half] = tempered(p[half], fit.temperature)
    screened = _screened(after, truth)
    faultless = [
        _ece(screened.confidence, rng.random(len(p)) < screened.confidence)
        for _ in range(RESAMPLES)
    ]
    promise = check_promise(
        screened,
        lambda part: control_risk(part, alpha=ALPHA, delta=DELTA).tau,
        alpha=ALPHA,
        size=DRAWN,
        resamples=RESAMPLES,
        seed=seed,
    )
    return {
        "temperature": [fit.temperature for fit in fits],
        "ece_before": _ece(p.max(1), screened.right),
        "ece": _ece(screened.confidence, screened.right),
        "ece_faultless": float(np.mean(faultless)),
        "risk_holds": promise.held,
        "refused": promise.refused,
        "risk": float(np.mean(promise.risks)) if promise.risks else None,
        "decided_alone": float(np.mean(promise.shares)) if promise.shares else None,
    }


def _ece(confidence: Floats, right: Any) -> float:
    return ece(reliability(confidence, right))


def _screened(p: Floats, truth: np.ndarray) -> Screening:
    """S1's answers as calibration takes them; the guard's opinion plays no part here."""
    return Screening.from_probabilities(p, truth, np.ones(len(p), bool))


def figures(seeds: int, root: Path) -> dict[str, Any]:
    """All that the report says."""
    world = World.of(root)
    runs = [SeedAnswers(seed_of(n), root, world) for n in range(seeds)]
    by_system = {
        name: over_seeds([accuracy(world.test, run.systems[name]) for run in runs])
        for name in SYSTEMS
    }
    trained_on = {
        name: over_seeds([run.trained_on[name] for run in runs])
        for name in ("unfiltered", "filtered")
    }
    spent = {name: [costs(list(run.systems[name].values())) for run in runs] for name in SYSTEMS}
    found = [
        calibration(given(run.seed.screened, root, "screen"), world.choice, n)
        for n, run in enumerate(runs)
    ]
    points = [run.sweep.at(run.tau) for run in runs]
    return {
        "videos": {"test": len(world.test), "choice": len(world.choice)},
        "classes": {
            "labelled": class_counts(read_records(LABELS.folder(root) / "records.jsonl")),
            "kept": class_counts(read_records(FILTER.folder(root) / "records.jsonl")),
            "choice": class_counts(world.choice),
            "test": class_counts(world.test),
        },
        "avg_acc": {name: of["avg_acc"]["values"] for name, of in (by_system | trained_on).items()},
        "cascade_cost_over_s2": {
            unit: spread([point.relative[unit] for point in points])
            for unit in ("gflops", "seconds")
        },
        "escalated": spread([point.escalated for point in points]),
        "tau": [run.tau for run in runs],
        "ece": [one["ece"] for one in found],
        "risk_holds": [one["risk_holds"] for one in found],
        "calibration": found,
        "systems": by_system,
        "trained_on": trained_on,
        "costs": {
            name: {
                "seconds": spread([c.seconds and c.seconds.mean for c in some]),
                "gflops": spread([c.gflops for c in some]),
            }
            for name, some in spent.items()
        },
        "sweep": _mean_sweep([run.sweep for run in runs]),
    }


def _mean_sweep(sweeps: Sequence[Sweep]) -> list[dict[str, float | None]]:
    """Means over seeds at the taus that all have."""
    rows = []
    for tau in GRID:
        points = [swept.at(tau) for swept in sweeps]
        row: dict[str, float | None] = {"tau": tau}
        for name in ("avg_acc", "escalated", "seconds", "gflops"):
            values = [getattr(point, name) for point in points]
            row[name] = None if None in values else float(np.mean(values))
        rows.append(row)
    return rows
