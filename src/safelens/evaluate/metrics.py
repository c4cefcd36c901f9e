"""From a system's answers to figures: how often it is right, what it misses, what it flags for nothing.

Knows the field's metrics and what each makes of a video without an answer. Knows nothing of costs, of
calibration, or of other systems.

Non-answers (undecided, unparsed, failed, missing) are never safe and never right:

- every accuracy and exact match counts them as wrong; those `_of_decided` leave them out;
- recall and F1 count them as misses of what the video violates (and of the class "safe" if it is safe);
- precision does not see them, for they flag nothing;
- AUPRC and AUROC rank decided answers alone, `scored` says how many, and are None unless all of those
  have the score: they can flatter a system that answers little, and want to be read beside recall.

An undefined figure is None, never 0: recall, F1, AUPRC and AUROC without a positive, precision without a
flag, AUROC without a negative. Precision without a positive is defined: each flag is false. So is F1
without a flag, where it is 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import NON_ANSWERS, Case, Cases, Truth, pair
from safelens.evaluate.explanations import explanations
from safelens.evaluate.figures import (
    AnyViolation,
    ClassFigures,
    Confusion,
    Counts,
    Detection,
    GroupFigures,
    Macro,
    Metrics,
    MultiLabel,
    SingleLabel,
)
from safelens.policy import SAFE, Policy


def measure(
    records: Sequence[Record],
    answers: Mapping[str, Answer],
    policy: Policy,
    *,
    truth: Truth = "true_labels",
) -> Metrics:
    """All figures of one run.

    Args:
        records: What was to be answered.
        answers: By the record's id; answers to other records are not looked at.
        policy: Whose categories both speak of.
        truth: Which labels of a record hold.

    Raises:
        EvaluationError: As `pair`.
    """
    cases = pair(records, answers, policy, truth=truth)
    return Metrics(
        counts=counts(cases),
        single_label=single_label(cases),
        multi_label=multi_label(cases),
        any_violation=any_violation(cases),
        scenarios=by(cases, "scenario"),
        difficulties=by(cases, "difficulty"),
        sources=by(cases, "source"),
        explanations=explanations(cases),
    )


def counts(cases: Cases) -> Counts:
    """How many videos there are, and what became of them."""
    found = Counter(case.outcome for case in cases)
    return Counts(
        videos=len(cases),
        left_out=len(cases.left_out),
        **{name: found[name] for name in ("decided", *NON_ANSWERS)},
    )


def single_label(cases: Cases) -> SingleLabel:
    """Figures of the one label that each answer gives."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = cases.policy.labels
    columns = (*classes, *NON_ANSWERS)
    truth = [classes.index(case.label) for case in cases]
    answered = [_column(case, classes) for case in cases]
    table = confusion_matrix(truth, answered, labels=range(len(columns)))[: len(classes)]
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, answered, labels=range(len(classes)), average=None, zero_division=0.0
    )
    figures = {
        name: ClassFigures(
            videos=int(support[i]),
            accuracy=float(recall[i]) if support[i] else None,
            precision=float(precision[i]) if table[:, i].any() else None,
            f1=float(f1[i]) if support[i] else None,
        )
        for i, name in enumerate(classes)
    }
    decided = [case for case in cases if case.decided]
    occur = support > 0
    return SingleLabel(
        accuracy=sum(case.right for case in cases) / len(cases),
        accuracy_of_decided=_share(sum(case.right for case in decided), len(decided)),
        avg_acc=float(recall[occur].mean()),
        macro_f1=float(f1[occur].mean()),
        classes=figures,
        absent=tuple(name for name, figure in figures.items() if not figure.videos),
        confusion=Confusion(classes, columns, tuple(tuple(map(int, row)) for row in table)),
    )


def multi_label(cases: Cases) -> MultiLabel:
    """Figures of all flags."""
    questions = {
        name: [
            _Question(name in case.truth, name in case.flags, case.decided, case.scores.get(name))
            for case in cases
            if case.knows(name)
        ]
        for name in cases.policy.labels[:-1]
    }
    categories = {name: _detection(asked) for name, asked in questions.items()}
    occurring = [figure for figure in categories.values() if figure.positives]
    whole = [case for case in cases if case.asked is None]
    exact = sum(case.decided and set(case.flags) == set(case.truth) for case in whole)
    return MultiLabel(
        exact_match=_share(exact, len(whole)),
        exact_match_of_decided=_share(exact, sum(case.decided for case in whole)),
        exact_match_videos=len(whole),
        categories=categories,
        micro=_detection([question for asked in questions.values() for question in asked]),
        macro=Macro(
            precision=_mean([figure.precision or 0.0 for figure in occurring]),
            recall=_mean([figure.recall for figure in occurring]),
            f1=_mean([figure.f1 for figure in occurring]),
            auprc=_mean([figure.auprc for figure in occurring]),
        ),
    )


def any_violation(cases: Cases) -> AnyViolation:
    """Figures of the one bit: does the video violate anything?"""
    asked = [
        _Question(bool(case.truth), bool(case.flags), case.decided, _violation(case, cases.policy))
        for case in cases
    ]
    right = sum(q.decided and q.flagged == q.truth for q in asked)
    return AnyViolation(
        **vars(_detection(asked)),
        accuracy=right / len(asked),
        accuracy_of_decided=_share(right, sum(q.decided for q in asked)),
    )


def by(cases: Cases, field: Literal["scenario", "difficulty", "source"]) -> dict[str, GroupFigures]:
    """Figures of each value of a record's field, sorted; records without a value are left out.

    `by(cases, "scenario")` has the rows of SafeWatch's tables by subcategory (arXiv 2412.06878), `by(cases, "source")`
    its columns Real and GenAI, where SafeWatch-Bench is read whole; the figures are as `GroupFigures` says.
    """
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        value = getattr(case.record, field)
        if value is not None:
            groups[value].append(case)
    found = {}
    for value, group in sorted(groups.items()):
        violating = [case for case in group if case.truth]
        found[value] = GroupFigures(
            videos=len(group),
            decided=sum(case.decided for case in group),
            accuracy=sum(case.right for case in group) / len(group),
            violating=len(violating),
            recall=_share(sum(case.label in case.flags for case in violating), len(violating)),
        )
    return found


class _Question(NamedTuple):
    truth: bool
    flagged: bool
    decided: bool
    score: float | None


def _detection(asked: list[_Question]) -> Detection:
    from sklearn.metrics import (
        average_precision_score,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    truth, flagged = [q.truth for q in asked], [q.flagged for q in asked]
    positives = sum(truth)
    precision = recall = f1 = 0.0
    if asked:
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, flagged, average="binary", zero_division=0.0
        )
    decided = [q for q in asked if q.decided]
    ranked = [q for q in decided if q.score is not None]
    ranked_truth, scores = [q.truth for q in ranked], [q.score for q in ranked]
    all_scored = len(ranked) == len(decided)
    return Detection(
        videos=len(asked),
        positives=positives,
        flagged=sum(flagged),
        precision=float(precision) if any(flagged) else None,
        recall=float(recall) if positives else None,
        f1=float(f1) if positives else None,
        auprc=float(average_precision_score(ranked_truth, scores))
        if all_scored and any(ranked_truth)
        else None,
        auroc=float(roc_auc_score(ranked_truth, scores))
        if all_scored and len(set(ranked_truth)) == 2
        else None,
        scored=len(ranked),
    )


def _column(case: Case, classes: tuple[str, ...]) -> int:
    """Where a case stands in the confusion matrix; positions, as a category may be named "failed"."""
    if case.answer is None or case.answer.label is None:
        return len(classes) + NON_ANSWERS.index(case.outcome)
    return classes.index(case.label if case.right else case.answer.label)


def _violation(case: Case, policy: Policy) -> float | None:
    if SAFE in case.scores:
        return 1 - case.scores[SAFE]
    found = [case.scores.get(name) for name in policy.labels[:-1]]
    known = [score for score in found if score is not None]
    return max(known) if len(known) == len(found) else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None of nothing, and where one is undefined."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
