"""Whether explanations name what violates, and when: against a truth that SafeWorld's records carry.

Knows which words of an explanation are moments and what counts as right. What a violation is called is the
matter of `safeworld.decisive`. Asks no model; `rubric` has one judge the rest.

Only violating videos count, and of those the answers that flag a right category: an explanation of a wrong
verdict has nothing to be right about. An answer without an explanation names nothing. Descriptions are not
read, for it is the reason that must name it.

A moment is a frame by its number, `Frame-3`, where the answer holds captions whose order numbers the frames,
or a time in seconds, `2.1 s`. It is right if *every* moment that the explanation names lies in the true
interval, give or take half the time between frames. So naming many moments is no better than chance, which
`by_chance` tells: a SafeWorld violation is often visible in most of its clip. A frame that is not there is a
wrong moment.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from statistics import fmean, median

from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import NON_ANSWERS, Case, Cases
from safelens.evaluate.figures import Explanations
from safelens.safeworld.decisive import Decisive, decisive

_FRAME = re.compile(r"\bframe[-\s#]{0,2}(\d{1,4})\b", re.IGNORECASE)
_TIME = re.compile(r"(?<![\d.])(\d{1,5}(?:\.\d{1,3})?)\s?(?:s|secs?|seconds?)\b", re.IGNORECASE)


def explanations(cases: Cases) -> Explanations:
    """What the explanations of one run name; see `Explanations`."""
    known = [(case, truth) for case in cases if (truth := _truth(case)) is not None]
    right = [(case, truth) for case, truth in known if set(case.flags) & truth.keys()]
    outcomes = Counter(case.outcome for case, _ in known)
    named = 0
    placed: list[bool] = []
    chances: list[float] = []
    for case, truth in right:
        text = _explanation(case)
        named += any(truth[label].named_in(text) for label in case.flags if label in truth)
        times = moments(text, case.answer)
        if times:
            start, end = _window(case)
            placed.append(all(start <= time <= end for time in times))
            shown = _frame_times(case)
            chances += [fmean(start <= time <= end for time in shown)] if shown else []
    return Explanations(
        videos=len(known),
        right=len(right),
        wrong=outcomes["decided"] - len(right),
        **{name: outcomes[name] for name in NON_ANSWERS},
        explained=sum(bool(_explanation(case)) for case, _ in right),
        named=_share(named, len(right)),
        named_of_all=_share(named, len(known)),
        moment=_share(sum(placed), len(right)),
        wrong_moment=_share(len(placed) - sum(placed), len(right)),
        no_moment=_share(len(right) - len(placed), len(right)),
        moment_of_all=_share(sum(placed), len(known)),
        moment_of_named=_share(sum(placed), len(placed)),
        by_chance=fmean(chances) if chances else None,
    )


def moments(text: str, answer: Answer | None) -> list[float]:
    """Seconds of all moments that a text names; infinite for a frame that is not there.

    Args:
        text: An explanation.
        answer: Whose captions number the frames; without captions a bare frame number is no moment.
    """
    times = [float(number) for number in _TIME.findall(text)]
    captions = () if answer is None else answer.captions
    if captions:
        numbers = map(int, _FRAME.findall(text))
        times += [captions[n].time_s if n < len(captions) else float("inf") for n in numbers]
    return times


def _truth(case: Case) -> dict[str, Decisive] | None:
    """By category what violates it; None where that or the interval is not known, or nothing violates."""
    found = decisive(case.record) if case.truth and case.record.interval is not None else None
    found = {label: one for label, one in (found or {}).items() if label in case.truth}
    return found or None


def _explanation(case: Case) -> str:
    return (case.answer.explanation if case.answer else None) or ""


def _frame_times(case: Case) -> list[float]:
    """When the frames are: those that the system was told of, else those of the record's captions."""
    told = case.answer.captions if case.answer else ()
    return [caption.time_s for caption in told or case.record.captions]


def _window(case: Case) -> tuple[float, float]:
    """The true interval in seconds, widened by half the time between frames."""
    assert case.record.interval is not None
    times = _frame_times(case)
    gaps = [b - a for a, b in pairwise(times)]
    half = median(gaps) / 2 if gaps else 0.0
    start, end = case.record.interval
    return start - half, end + half


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
