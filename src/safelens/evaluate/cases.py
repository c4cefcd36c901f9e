"""Each record beside the answer that a system gave on it: what every metric counts.

Knows which labels are the truth, which records have none, and that only a decided answer can be right.
Knows nothing of figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.policy import SAFE, Policy

Truth = Literal["true_labels", "labels"]
"""Which labels of a record hold. "true_labels": those where it has them, else `labels`. "labels": always
`labels`, which may be noisy."""

NON_ANSWERS = ("undecided", "unparsed", "failed", "missing")
"""How an answer can be none. "missing": there is none for the record; the others are of `Outcome`."""


class EvaluationError(ValueError):
    """Records and answers cannot be measured; the message names the ids and what to do."""


@dataclass(frozen=True)
class Case:
    """One record whose truth is known, and what was answered.

    Attributes:
        record: The record.
        truth: Ids of the categories that it violates; empty for safe.
        asked: Ids of the categories that `truth` speaks of; None for all of the policy.
        answer: The system's; None where it is missing.
    """

    record: Record
    truth: tuple[str, ...]
    asked: tuple[str, ...] | None
    answer: Answer | None

    @property
    def outcome(self) -> str:
        """The answer's outcome, or "missing"."""
        return "missing" if self.answer is None else self.answer.outcome

    @property
    def decided(self) -> bool:
        """Whether there is an answer at all."""
        return self.outcome == "decided"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The labels that are right: the truth's, or "safe"."""
        return self.truth or (SAFE,)

    @property
    def label(self) -> str:
        """The class that the record counts under: its first label, or "safe"."""
        return self.wanted[0]

    @property
    def flags(self) -> tuple[str, ...]:
        """Categories that the answer flags; none where nothing was decided."""
        return (self.answer.flags if self.answer else None) or ()

    @property
    def right(self) -> bool:
        """Whether the answer's label is one of the wanted ones; never where nothing was decided."""
        return self.answer is not None and self.decided and self.answer.label in self.wanted

    @property
    def scores(self) -> dict[str, float]:
        """The scores of a decided answer; empty where it has none or nothing was decided."""
        return (self.answer.scores if self.answer and self.decided else None) or {}

    def knows(self, category: str) -> bool:
        """Whether the truth says if the video violates this category."""
        return self.asked is None or category in self.asked


@dataclass(frozen=True)
class Cases:
    """Records with a known truth, in their order, each with its answer. Never empty.

    Attributes:
        policy: Gives the classes and their order.
        cases: One a record.
        left_out: Ids of records whose truth is not known.
    """

    policy: Policy
    cases: tuple[Case, ...]
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)


def pair(
    records: Sequence[Record],
    answers: Mapping[str, Answer],
    policy: Policy,
    *,
    truth: Truth = "true_labels",
) -> Cases:
    """Puts each record beside its answer; answers to other records are not looked at.

    A record that is `Record.undecided` has no truth, unless it has `true_labels` and they are asked for.

    Args:
        records: What was to be answered.
        answers: By the record's id.
        policy: Whose categories records and answers speak of.
        truth: Which labels hold.

    Raises:
        EvaluationError: No record has a known truth, an id repeats, an answer is filed under another id, or a
            label, flag or score names no class of the policy.
    """
    repeated = [name for name, n in Counter(r.id for r in records).items() if n > 1]
    if repeated:
        raise EvaluationError(f"{named(repeated)} repeated among the records; ids must be unique")
    cases, left_out = [], []
    for record in records:
        answer = answers.get(record.id)
        if answer is not None and answer.id != record.id:
            raise EvaluationError(
                f"the answer filed under {record.id!r} is of {answer.id!r};"
                " file each answer under its own id"
            )
        labels, asked = record.labels, record.asked
        if truth == "true_labels" and record.true_labels is not None:
            labels, asked = record.true_labels, None
        if not labels and asked is not None:
            left_out.append(record.id)
            continue
        case = Case(record, labels, asked, answer)
        _check(f"labels of record {record.id!r}", labels, policy.labels[:-1])
        _check(f"flags of the answer on {record.id!r}", case.flags, policy.labels[:-1])
        _check(f"scores of the answer on {record.id!r}", case.scores, policy.labels)
        cases.append(case)
    if not cases:
        raise EvaluationError(
            f"none of {len(records)} records has a known truth; expected labels of every category"
        )
    return Cases(policy, tuple(cases), tuple(left_out))


def named(ids: Iterable[str]) -> str:
    """The first ids, sorted, for an error message, and how many more there are."""
    ids = sorted(ids)
    shown = ", ".join(repr(name) for name in ids[:10])
    return shown + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def _check(where: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise EvaluationError(
            f"{where}: {', '.join(map(repr, unknown))} not in the policy, which has {', '.join(known)};"
            " measure with the policy that both were made with"
        )
