"""Runs a bundle over parts of a data set and finds its temperature and tau from what it answers.

Knows the order: temperature on its own part; then S1, and S2 where tau depends on it, on the other videos
*with that temperature*, since S2 is told S1's scores; tau on its part; both measured on the last. So what is
measured is what the calibrated bundle does. Writes no bundle. The mathematics is in `calibrate`, `risk`,
`tradeoff` and `reliability`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from safelens.bundle import Bundle
from safelens.calibrate import (
    CalibrationError,
    Floats,
    Screening,
    TemperatureFit,
    class_sets,
    fit_temperature,
    tempered,
)
from safelens.calibrated_bundle import (
    Calibration,
    Evidence,
    Measured,
    Method,
    thresholds_of,
)
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import Case, pair
from safelens.evaluate.parts import SHARES, Parts
from safelens.evaluate.run import Sample, run_system
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.policy import SAFE, Policy
from safelens.reliability import ece, reliability
from safelens.risk import control_class_risk, control_risk, samples_needed, selective_risk
from safelens.thresholds import Thresholds
from safelens.tradeoff import (
    OperatingPoint,
    operating_point,
    operating_points,
    tau_for_accuracy,
    tau_for_cost,
)

BOUNDS: dict[Method, dict[str, float]] = {
    "risk": {"alpha": 0.05, "delta": 0.05},
    "class_risk": {"alpha": 0.05, "delta": 0.05},
    "cost": {"most": 0.4},
    "accuracy": {"least": 0.95, "delta": 0.05},
}
"""What each method is asked for, with the usual values."""
NEEDS_S2: tuple[Method, ...] = ("cost", "accuracy")


@dataclass(frozen=True)
class Found:
    """What calibration found.

    Attributes:
        calibration: What a bundle is written from.
        fit: Of the temperature; None where it stays as it is.
        without: Why it stays.
    """

    calibration: Calibration
    fit: TemperatureFit | None
    without: str | None


@dataclass(frozen=True)
class Watch:
    """What is told of while videos run.

    Attributes:
        begin: Told of each pass: what, and how many videos.
        done: Called for every video.
        say: Told of each video that failed.
    """

    begin: Callable[[str, int], None]
    done: Callable[[], None]
    say: Callable[[str], None]


def calibrate(
    source: str,
    bundle: Bundle,
    parts: Parts,
    method: Method,
    target: Mapping[str, float],
    work: Path,
    *,
    seed: int,
    watch: Watch,
) -> Found:
    """Find temperature and tau, and measure both on videos that chose neither.

    Args:
        source: The bundle, as `Bundle.load` takes it.
        bundle: The same, loaded.
        parts: Of the data set; without a part for the temperature, that stays as it is.
        method: What tau is chosen by.
        target: What is asked for, with the names of `BOUNDS[method]`.
        work: Answers are kept there, by video and by all that they depend on.
        seed: That `parts` were divided with.
        watch: What is told meanwhile.

    Raises:
        CalibrationError: The videos cannot carry what is asked for. Where their number alone says so, no
            model is run.
        SystemsError: The bundle's models cannot be loaded.
        LogError, OSError: A file of answers cannot be read or written.
        ValueError: A bound is out of its range.
    """
    labels = bundle.policy.labels
    _check_size(parts, method, target, len(labels))
    told = Counter(parts.left_out)
    fit, without = None, "not asked for"
    if parts.temperature:
        system = SafeLensSystem(source, source, screen_only=True)
        rows = _run("temperature", system, parts.temperature, work, watch)
        told += rows.left_out
        try:
            fit = fit_temperature(rows.probabilities, rows.own_truth, labels)
        except CalibrationError as error:
            without = str(error)
    change = 1.0 if fit is None else fit.temperature
    system = SafeLensSystem(
        source,
        source,
        screen_only=method not in NEEDS_S2,
        temperature=bundle.settings.screen.temperature * change,
    )
    both = _run("tau and test", system, [*parts.tau, *parts.test], work, watch)
    told += both.left_out
    chosen, test = both.split(len(parts.tau))
    evidence, bound = _choose(chosen, method, target)
    s1, new = test.screening, thresholds_of(evidence)
    bins = reliability(s1.confidence, s1.right)
    after = _measured(s1, new, labels)
    if method in NEEDS_S2:
        after = after.model_copy(update={"cascade": test.cascade(new.tau)})
    old = s1
    if fit is not None:  # the logits are the same, so the old temperature can be put back
        p = tempered(test.probabilities, 1 / change)
        old = Screening.from_probabilities(p, test.own_truth, s1.familiar)
    calibration = Calibration(
        bundle_sha256=bundle.sha256,
        data_sha256=parts.sha256,
        seed=seed,
        counts=parts.counts,
        left_out=dict(told),
        method=method,
        target=dict(target),
        evidence=evidence,
        lower_bound=bound,
        temperature=change,
        before=_measured(old, bundle.settings.thresholds, labels),
        after=after,
        reliability=bins,
    )
    return Found(calibration, fit, None if fit else without)


def _check_size(parts: Parts, method: Method, target: Mapping[str, float], classes: int) -> None:
    """Refuse what no answers on so few videos can carry, before a model is run."""
    counts = parts.counts
    needed = 1
    if "delta" in target:
        risk = 1 - target["least"] if method == "accuracy" else target["alpha"]
        needed = samples_needed(risk, target["delta"] / (classes if method == "class_risk" else 1))
    if counts["tau"] < needed or not counts["test"]:
        share = SHARES["tau"] / (1 if counts["temperature"] else 1 - SHARES["temperature"])
        raise CalibrationError(
            f"{counts['tau']} videos to choose tau on and {counts['test']} to measure it on are too few: "
            f"at least {needed} are needed for tau, if S1 is right on all of them, hence about "
            f"{max(4, round(needed / share))} in all"
        )


def _choose(
    rows: _Rows, method: Method, target: Mapping[str, float]
) -> tuple[Evidence, float | None]:
    """The evidence that gives tau, and a lower bound of the accuracy where that was asked for."""
    if method == "risk":
        return control_risk(rows.screening, **target), None
    if method == "class_risk":
        return control_class_risk(rows.screening, rows.policy.labels, **target), None
    s1, s2_right, costs = rows.stages
    points = operating_points(s1, s2_right, **costs)
    if method == "cost":
        return tau_for_cost(points, **target), None
    return tau_for_accuracy(points, **target)


def _measured(s1: Screening, thresholds: Thresholds, labels: Sequence[str]) -> Measured:
    tau = np.array([thresholds.of(name) for name in labels])
    own = s1.take(s1.stands(tau))
    return Measured(
        answers=len(s1),
        alone=len(own),
        wrong=int((~own.right).sum()),
        risk=selective_risk(s1, tau if thresholds.taus else thresholds.tau),
        ece=ece(reliability(s1.confidence, s1.right)),
    )


def _run(
    name: str, system: SafeLensSystem, samples: Sequence[Sample], work: Path, watch: Watch
) -> _Rows:
    watch.begin(name, len(samples))
    folder = name.replace(" ", "-")
    run = run_system(folder, system, samples, work, say=watch.say, on_done=watch.done)
    records = [sample.record for sample in samples]

    def cases(stage: str) -> tuple[Case, ...]:
        return pair(records, {a.id: a for a in run.answers[stage]}, system.policy).cases

    s2 = cases("deliberate") if "deliberate" in system.stages else None
    return _Rows(system.policy, system.outside_domain == "refuse", cases("screen"), s2)


@dataclass(frozen=True)
class _Rows:
    """Answers of both stages beside the truth, one a video; S2's None where it was not asked."""

    policy: Policy
    refuses: bool
    s1: tuple[Case, ...]
    s2: tuple[Case, ...] | None

    def split(self, at: int) -> tuple[_Rows, _Rows]:
        """The first `at` videos and the others."""
        s2 = (None, None) if self.s2 is None else (self.s2[:at], self.s2[at:])
        return (
            _Rows(self.policy, self.refuses, self.s1[:at], s2[0]),
            _Rows(self.policy, self.refuses, self.s1[at:], s2[1]),
        )

    @cached_property
    def own(self) -> tuple[Case, ...]:
        """What S1 decided on familiar videos: of these alone its answer can stand."""
        return tuple(case for case in self.s1 if case.decided and _answer(case).familiar)

    @property
    def left_out(self) -> Counter[str]:
        """Videos without such an answer, by reason."""
        reasons = Counter[str]()
        for case in self.s1:
            if case.outcome == "failed":
                reasons["failed"] += 1
            elif not _answer(case).familiar:
                reasons["unfamiliar"] += 1
            elif not case.decided:
                reasons["cut off, hence undecided"] += 1
        return reasons

    @property
    def screening(self) -> Screening:
        """`own`, as arrays."""
        return _screening(self.own, self.policy)

    @property
    def probabilities(self) -> Floats:
        """S1's, of `own`, shape (N, C)."""
        labels = self.policy.labels
        rows = [[case.scores[name] for name in labels] for case in self.own]
        return np.array(rows, float).reshape(len(rows), len(labels))

    @property
    def own_truth(self) -> np.ndarray:
        """Which classes hold, of `own`, shape (N, C), bool."""
        return class_sets([case.truth for case in self.own], self.policy.labels)

    @property
    def stages(self) -> tuple[Screening, list[bool], dict[str, Floats]]:
        """S1's answers, whether S2 is right, and costs in seconds, of all videos that the cascade decides.

        Left out is what failed before S1, and what the bundle refuses. Where S2 failed it is not right,
        and costs what it costs on average.

        Raises:
            CalibrationError: S2 failed on all of them.
        """
        assert self.s2 is not None
        both = [
            (one, two)
            for one, two in zip(self.s1, self.s2, strict=True)
            if one.outcome != "failed" and (_answer(one).familiar or not self.refuses)
        ]
        s1_cost = np.array([_seconds(one) for one, _ in both], float)
        whole = np.array(
            [np.nan if two.outcome == "failed" else _seconds(two) for _, two in both], float
        )
        if np.isnan(whole).all():
            raise CalibrationError(
                f"S2 answered on none of {len(both)} videos; see what failed above"
            )
        whole[np.isnan(whole)] = np.nanmean(whole)
        costs = {"s1_cost": s1_cost, "s2_cost": np.maximum(whole - s1_cost, 0)}
        s1 = _screening([one for one, _ in both], self.policy)
        return s1, [two.right for _, two in both], costs

    def cascade(self, tau: float) -> OperatingPoint:
        """Accuracy and cost of the whole at a tau."""
        s1, s2_right, costs = self.stages
        return operating_point(s1, s2_right, tau, **costs)


def _screening(cases: Sequence[Case], policy: Policy) -> Screening:
    answers = [_answer(case) for case in cases]
    # S1's answer on a cut off video has no label where it flags nothing; it is not right there.
    predicted = [policy.labels.index(answer.label or SAFE) for answer in answers]
    return Screening(
        np.array([answer.confidence for answer in answers], float),
        np.array(predicted, int),
        np.array([case.right for case in cases], bool),
        np.array([bool(answer.familiar) for answer in answers], bool),
    )


def _answer(case: Case) -> Answer:
    assert case.answer is not None
    return case.answer


def _seconds(case: Case) -> float:
    """What an answer took, without decoding, which both stages share."""
    return sum(s for name, s in _answer(case).seconds.items() if name != "decode")
