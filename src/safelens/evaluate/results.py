"""All figures of a run: each system's, each bundle's sweep over tau, and a comparison if one is asked for.

Knows which answers are one system's and by what name. Knows nothing of how figures are computed or shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import Cases, EvaluationError, Truth, pair
from safelens.evaluate.compare import Comparison, compare
from safelens.evaluate.cost import Costs, costs
from safelens.evaluate.figures import Metrics, Rubric
from safelens.evaluate.memory import PeakMemory
from safelens.evaluate.metrics import measure
from safelens.evaluate.run import CASCADE, Run
from safelens.evaluate.sweep import GRID, Sweep, sweep
from safelens.policy import Policy
from safelens.reliability import Bin, ece, reliability
from safelens.thresholds import Thresholds

SCHEMA = "safelens.metrics/1"


@dataclass(frozen=True)
class Judged:
    """One system, or one stage of a bundle, against the truth.

    Attributes:
        name: The system's in its file; of a bundle's stage "SYSTEM/STAGE".
        stage: What the answers are of.
        knows: What the bundle is limited to, for a reader, or None.
        thresholds: Of a bundle's cascade.
        cases: Records with a known truth and the answers.
        metrics: What is right.
        costs: What it costs, on the same videos.
        reliability: Of the confidences of decided answers, as they were given; None where one has none.
        memory: The most that the whole system took; the same for all stages of a bundle.
        rubric: What a judge thinks of its explanations; None where none was asked, or none is there.
    """

    name: str
    stage: str
    knows: str | None
    thresholds: Thresholds | None
    cases: Cases
    metrics: Metrics
    costs: Costs
    reliability: tuple[Bin, ...] | None
    memory: PeakMemory | None
    rubric: Rubric | None = None

    @property
    def final(self) -> bool:
        """Whether this is the system's last word, and not a stage on the way to it."""
        return self.stage == CASCADE or "/" not in self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without NaN."""
        bins = self.reliability
        return {
            "stage": self.stage,
            "knows": self.knows,
            "thresholds": None if self.thresholds is None else asdict(self.thresholds),
            "metrics": self.metrics.to_dict(),
            "costs": asdict(self.costs),
            "memory": None if self.memory is None else self.memory.model_dump(),
            "ece": None if bins is None else ece(bins),
            "reliability": None if bins is None else [asdict(b) for b in bins],
            "rubric": None if self.rubric is None else asdict(self.rubric),
        }


@dataclass(frozen=True)
class Compared:
    """Two systems of the run on the same videos.

    Attributes:
        first: Name of the first.
        second: Name of the second.
        comparison: The first against the second.
    """

    first: str
    second: str
    comparison: Comparison


@dataclass(frozen=True)
class Results:
    """All figures of one run.

    Attributes:
        data: Name of the data set, for a reader.
        policy: By whose categories all are judged.
        truth: Which labels of a record hold.
        systems: By name, in the order of the run.
        sweeps: Of each bundle, by the system's name.
        compared: If it was asked for.
    """

    data: str
    policy: Policy
    truth: Truth
    systems: dict[str, Judged]
    sweeps: dict[str, Sweep]
    compared: Compared | None

    @property
    def limits(self) -> dict[str, list[str]]:
        """What bundles are limited to, in their words, and the names of the systems that it holds for."""
        found: dict[str, list[str]] = {}
        for judged in self.systems.values():
            if judged.knows:
                found.setdefault(judged.knows, []).append(judged.name)
        return found

    def tau(self, system: str) -> float | None:
        """A bundle's one tau, by the system's name; None where each class has its own."""
        thresholds = self.systems[f"{system}/{CASCADE}"].thresholds
        return None if thresholds is None or thresholds.taus else thresholds.tau

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without NaN."""
        c = self.compared
        return {
            "schema": SCHEMA,
            "data": self.data,
            "policy": {"id": self.policy.id, "sha256": self.policy.sha256},
            "truth": self.truth,
            "systems": {name: judged.to_dict() for name, judged in self.systems.items()},
            "sweeps": {name: swept.to_dict() for name, swept in self.sweeps.items()},
            "comparison": None
            if c is None
            else {"first": c.first, "second": c.second, **c.comparison.to_dict()},
        }


def names_of(system: str, stages: Sequence[str]) -> dict[str, str]:
    """Names under which a system's answers are shown, to their stages; of a bundle one each, cascade first.

    Args:
        system: Its name in the file of systems.
        stages: Of its protocol, or those of its run.
    """
    if len(stages) == 1:
        return {system: stages[0]}
    return {f"{system}/{stage}": stage for stage in (CASCADE, *(s for s in stages if s != CASCADE))}


def find_name(wanted: str, systems: Mapping[str, Sequence[str]]) -> str:
    """The name that is meant; that of a bundle means its cascade.

    Args:
        wanted: SYSTEM or SYSTEM/STAGE.
        systems: Stages by the system's name.

    Raises:
        EvaluationError: There is none.
    """
    known = [name for system, stages in systems.items() for name in names_of(system, stages)]
    for name in (wanted, f"{wanted}/{CASCADE}"):
        if name in known:
            return name
    raise EvaluationError(f"no system {wanted!r} to compare; there are {', '.join(known)}")


def judge(
    data: str,
    records: Sequence[Record],
    runs: Mapping[str, Run],
    policy: Policy,
    *,
    truth: Truth = "true_labels",
    to_compare: tuple[str, str] | None = None,
) -> Results:
    """Measure all systems of a run.

    Args:
        data: Name of the data set, for a reader.
        records: What was to be answered.
        runs: By the system's name; all on these records.
        policy: Whose categories all speak of.
        truth: Which labels of a record hold.
        to_compare: Two systems, each as `find_name` takes it.

    Raises:
        EvaluationError: No record has a known truth, or there is no such system to compare; or as `pair`.
    """
    given: dict[str, dict[str, Answer]] = {}
    systems: dict[str, Judged] = {}
    sweeps: dict[str, Sweep] = {}
    for system, run in runs.items():
        stages = {s: {a.id: a for a in answers} for s, answers in run.answers.items()}
        for name, stage in names_of(system, list(stages)).items():
            given[name] = stages[stage]
            thresholds = run.thresholds if stage == CASCADE else None
            systems[name] = _judged(
                name, stage, run, thresholds, records, given[name], policy, truth
            )
        if run.thresholds is not None and run.outside_domain is not None and CASCADE in stages:
            sweeps[system] = sweep(
                records,
                stages["screen"],
                stages["deliberate"],
                policy,
                outside_domain=run.outside_domain,
                taus=(*GRID, run.thresholds.tau),
                truth=truth,
            )
    compared = None
    if to_compare is not None:
        known = {system: list(run.answers) for system, run in runs.items()}
        first, second = (find_name(wanted, known) for wanted in to_compare)
        found = compare(records, given[first], given[second], policy, truth=truth)
        compared = Compared(first, second, found)
    return Results(data, policy, truth, systems, sweeps, compared)


def _judged(
    name: str,
    stage: str,
    run: Run,
    thresholds: Thresholds | None,
    records: Sequence[Record],
    answers: Mapping[str, Answer],
    policy: Policy,
    truth: Truth,
) -> Judged:
    cases = pair(records, answers, policy, truth=truth)
    decided = [case for case in cases if case.decided]
    confidences = [case.answer.confidence for case in decided if case.answer is not None]
    sure = [confidence for confidence in confidences if confidence is not None]
    bins = None
    if sure and len(sure) == len(decided):
        bins = reliability(sure, [case.right for case in decided])
    return Judged(
        name=name,
        stage=stage,
        knows=run.knows,
        thresholds=thresholds,
        cases=cases,
        metrics=measure(records, answers, policy, truth=truth),
        costs=costs([case.answer for case in cases if case.answer is not None]),
        reliability=bins,
        memory=run.memory,
    )
