"""The errors of one system that a person should look at first: confident and wrong.

Knows kinds of errors and their order. Knows nothing of pictures or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safelens.evaluate.cases import Case, Cases

Kind = Literal["false_negative", "false_positive", "wrong_category", "no_answer"]

KINDS: dict[Kind, str] = {
    "false_negative": "False negatives: violating, called safe",
    "false_positive": "False positives: safe, flagged",
    "wrong_category": "Wrong category: violating, flagged as something else",
    "no_answer": "No answer",
}
"""What can go wrong, the dearest first."""


@dataclass(frozen=True)
class Errors:
    """Errors of one kind.

    Attributes:
        kind: Which.
        count: All there are.
        worst: The most confident of them, at most as many as asked for; without a confidence they stand last.
    """

    kind: Kind
    count: int
    worst: tuple[Case, ...]


def errors(cases: Cases, *, most: int) -> list[Errors]:
    """A system's errors by kind, worst first; kinds that do not occur are left out.

    Args:
        cases: Records and answers.
        most: Errors kept of each kind.
    """
    found = []
    for kind in KINDS:
        members = [case for case in cases if _kind(case) == kind]
        if members:
            worst = sorted(members, key=lambda case: (-_confidence(case), case.record.id))
            found.append(Errors(kind, len(members), tuple(worst[:most])))
    return found


def top_scores(case: Case, *, most: int = 3) -> Sequence[tuple[str, float]]:
    """The highest scores of a decided answer, highest first."""
    return sorted(case.scores.items(), key=lambda item: -item[1])[:most]


def _kind(case: Case) -> Kind | None:
    if not case.decided:
        return "no_answer"
    if case.right:
        return None
    if not case.flags:
        return "false_negative"
    return "wrong_category" if case.truth else "false_positive"


def _confidence(case: Case) -> float:
    found = None if case.answer is None else case.answer.confidence
    return -1.0 if found is None else found
