"""The figures that one run of one system gives, as plain data.

Knows what each figure is of, and that an undefined one is None. Knows nothing of how they are computed;
`metrics` says what each makes of a video without an answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from safelens.evaluate.spread import Spread


@dataclass(frozen=True)
class Counts:
    """What was measured on, in videos.

    Attributes:
        videos: With a known truth; the outcomes below add up to it.
        decided: Answered.
        undecided: The system said that it cannot tell.
        unparsed: It wrote something that is no answer.
        failed: It raised, timed out, or could not read the video.
        missing: There is no answer on record.
        left_out: Videos whose truth is not known; in no other figure.
    """

    videos: int
    decided: int
    undecided: int
    unparsed: int
    failed: int
    missing: int
    left_out: int


@dataclass(frozen=True)
class ClassFigures:
    """One class against the rest, for the single label.

    Attributes:
        videos: How many are of the class.
        accuracy: Share of them answered rightly, which is the class's recall.
        precision: Share of those among the answers that name the class.
        f1: Harmonic mean of the two.
    """

    videos: int
    accuracy: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class Confusion:
    """Videos by class and answer; an answer that names any of a video's labels stands on the diagonal.

    Attributes:
        rows: K classes of the truth.
        columns: The same K, then the non-answers, by name.
        counts: Videos, shape (K, K + 4).
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SingleLabel:
    """The one label of each answer against the record's class, which is its first label or "safe".

    An answer is right if it names any of the record's labels. A category that the truth does not speak of
    counts as wrong.

    Attributes:
        accuracy: Share of all videos answered rightly.
        accuracy_of_decided: The same of those that were answered.
        avg_acc: Unweighted mean accuracy of the classes that occur (SafeLens's Avg ACC).
        macro_f1: Unweighted mean F1 of the same classes.
        classes: Each class of the policy.
        absent: Classes of the policy that no video is of; in no mean.
        confusion: Videos by class and answer.
    """

    accuracy: float
    accuracy_of_decided: float | None
    avg_acc: float
    macro_f1: float
    classes: dict[str, ClassFigures]
    absent: tuple[str, ...]
    confusion: Confusion


@dataclass(frozen=True)
class Detection:
    """How well one question, answered yes by a flag, is answered.

    Attributes:
        videos: How many times it was asked.
        positives: To how many of those yes is true.
        flagged: How many were answered yes.
        precision: Share of the flagged that are positive.
        recall: Share of the positives that are flagged.
        f1: Harmonic mean of the two: 2 TP / (2 TP + FP + FN).
        auprc: Average precision of the scores.
        auroc: Probability that a positive has the higher score than a negative.
        scored: Decided answers with a score.
    """

    videos: int
    positives: int
    flagged: int
    precision: float | None
    recall: float | None
    f1: float | None
    auprc: float | None
    auroc: float | None
    scored: int


@dataclass(frozen=True)
class AnyViolation(Detection):
    """Whether a video violates anything.

    Ranked by 1 - P(safe) where an answer scores "safe", else by its highest score of all categories.

    Attributes:
        accuracy: Share of all videos rightly flagged or rightly called safe.
        accuracy_of_decided: The same of those that were answered.
    """

    accuracy: float
    accuracy_of_decided: float | None


@dataclass(frozen=True)
class Macro:
    """Unweighted means over the categories that some video violates.

    Attributes:
        precision: A category that was never flagged counts as 0.
        recall: Mean recall.
        f1: Mean F1.
        auprc: None unless each of them has one.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    auprc: float | None


@dataclass(frozen=True)
class MultiLabel:
    """The flags of each answer against all of the record's labels.

    A category counts on the videos whose truth speaks of it (`Record.asked`).

    Attributes:
        exact_match: Share of videos with exactly the true flags (subset accuracy).
        exact_match_of_decided: The same of those that were answered.
        exact_match_videos: Videos whose truth speaks of every category; the two above are of them.
        categories: Each category of the policy.
        micro: All pairs of a video and a category that its truth speaks of, pooled.
        macro: Means over categories.
    """

    exact_match: float | None
    exact_match_of_decided: float | None
    exact_match_videos: int
    categories: dict[str, Detection]
    micro: Detection
    macro: Macro


@dataclass(frozen=True)
class GroupFigures:
    """Videos of one kind.

    Attributes:
        videos: How many.
        decided: Answered.
        accuracy: Share whose answer names one of their labels.
        violating: How many violate something.
        recall: Share of those whose class is among the flags.
    """

    videos: int
    decided: int
    accuracy: float
    violating: int
    recall: float | None


@dataclass(frozen=True)
class Explanations:
    """What explanations name, of violating videos whose truth is known in words (SafeWorld's).

    Shares are None where there is nothing to count; see `explanations` for what is right.

    Attributes:
        videos: Violating, with such a truth; the next six add up to it.
        right: Answers that flag a category which is violated.
        wrong: Other decided answers.
        undecided: As in `Counts`, and so the next three.
        unparsed: No answer.
        failed: No answer.
        missing: No answer.
        explained: Of the right, those with an explanation.
        named: Share of the right whose explanation names what violates.
        named_of_all: Share of all videos that are flagged rightly and whose explanation names it.
        moment: Share of the right whose explanation names a right moment.
        wrong_moment: Share of the right whose explanation names a wrong one.
        no_moment: Share of the right whose explanation names none.
        moment_of_all: Share of all videos that are flagged rightly, with a right moment.
        moment_of_named: Share of right moments among explanations that name one.
        by_chance: What the last would be if each named one of the video's frames at random.
    """

    videos: int
    right: int
    wrong: int
    undecided: int
    unparsed: int
    failed: int
    missing: int
    explained: int
    named: float | None
    named_of_all: float | None
    moment: float | None
    wrong_moment: float | None
    no_moment: float | None
    moment_of_all: float | None
    moment_of_named: float | None
    by_chance: float | None


@dataclass(frozen=True)
class Rubric:
    """What a judge thinks of one system's explanations, each criterion over the graded ones.

    Attributes:
        judge: Its model's name.
        graded: Explanations with grades; only they are in the figures below.
        unparsed: Explanations whose grades could not be read, asked again and again.
        failed: Explanations that the judge gave no answer on.
        unexplained: Decided answers without an explanation; nothing to grade.
        accuracy: Grades from 1 to 10.
        specificity: Grades from 1 to 10.
        conciseness: Grades from 1 to 10.
        overall: The mean of an explanation's three grades.
    """

    judge: str
    graded: int
    unparsed: int
    failed: int
    unexplained: int
    accuracy: Spread
    specificity: Spread
    conciseness: Spread
    overall: Spread


@dataclass(frozen=True)
class Metrics:
    """All figures of one run of one system.

    Attributes:
        counts: What was measured on.
        single_label: One label a video.
        multi_label: All labels.
        any_violation: Safe or not.
        scenarios: By `Record.scenario`, "category/subcategory"; records without one are not here.
        difficulties: By `Record.difficulty`, likewise.
        sources: By `Record.source`, such as "safewatch-bench/real" and "safewatch-bench/genai".
        explanations: What they name, on the videos where that can be known.
    """

    counts: Counts
    single_label: SingleLabel
    multi_label: MultiLabel
    any_violation: AnyViolation
    scenarios: dict[str, GroupFigures]
    difficulties: dict[str, GroupFigures]
    sources: dict[str, GroupFigures]
    explanations: Explanations

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without NaN."""
        return asdict(self)
