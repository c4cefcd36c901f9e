"""Reasoning traces by rule, for data whose truth is known in words: SafeWorld's.

Knows the record: its truth (description, explanation, interval) and what the fast system said of it
(captions, scores). Needs no model, so that the whole recipe runs offline.

A trace gives the truth's own reason, names the frame that decides, and says whether captions and scores
agree with it. The reason comes first: what is written before it would be a verdict without reasoning. It
is short, about 35 words, because a model of a few million parameters learns it. It never says that a
caption shows what it does not: captions whose words are not those of the truth are called vague.

What is said of captions and scores must not go with the label. When the captions of all shootings were called
vague, the small model of `recipes.tiny` explained shootings rightly, went on with a sentence that it knew
from safe clips, and answered by that: 57 % of violence was found, over 90 % once the words agreed.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Self

from safelens.curate.trace_generator import Attempt, Unanswerable
from safelens.data.records import Record
from safelens.policy import SAFE, Policy
from safelens.prompts import deliberation_answer

SUPPORT = 0.65
"""Agreement of captions and truth, 0 to 1, from which on the captions are said to show it.

Of SafeWorld's own captions all reach it; of those of a scene's twin, which differ in what decides, 33 %; of
another scene's, 0.6 % (3,000 scenes, five captions each)."""

_EVIDENCE = {
    # (captions show it, scores): wordings
    (True, "agree"): (
        "{frame} shows it, and the scores agree.",
        "The scores agree, and {frame} shows it.",
        "{frame} decides, as the scores say.",
    ),
    (True, "unsure"): (
        "The scores are unsure, but {frame} shows it.",
        "{frame} shows it, where the scores are unsure.",
        "The scores leave it open; {frame} shows it.",
    ),
    (True, "lean"): (
        "The scores lean to {name}, but {frame} shows it.",
        "{frame} shows it, although the scores lean to {name}.",
        "Against the scores, which lean to {name}, {frame} shows it.",
    ),
    (False, "agree"): (
        "The captions are vague, but at {frame} the video agrees with the scores.",
        "At {frame} the video decides, as the scores say; the captions are vague.",
        "The captions are vague; at {frame} scores and video are clear.",
    ),
    (False, "unsure"): (
        "Captions and scores are vague; at {frame} the video decides.",
        "At {frame} the video decides; captions and scores are vague.",
        "The captions are vague, the scores unsure; {frame} of the video decides.",
    ),
    (False, "lean"): (
        "The captions are vague and the scores lean to {name}, but at {frame} the video decides.",
        "At {frame} the video decides, although captions are vague and scores lean to {name}.",
        "The scores lean to {name} and the captions are vague; {frame} of the video decides.",
    ),
}
"""What follows the reason. The frame always has a word after it: a small model's tokenizer would make one
token of a bracket and the mark after it, too rare to be learned."""
_FROM_LABEL = {
    "agree": ", as the scores say.",
    "unsure": "; the scores are unsure.",
    "lean": ", although the scores lean to {name}.",
}


class RuleGenerator:
    """Writes traces of records that carry their truth in words.

    Args:
        policy: gives names and the form of the answer.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def write(self, record: Record, rejected: Sequence[Attempt], *, fresh: bool) -> str:
        """A trace for `record.labels`; the same record gives the same text, each attempt another.

        Raises:
            Unanswerable: As `trace`.
        """
        return self.trace(record, len(rejected))

    def trace(self, record: Record, attempt: int = 0) -> str:
        """A trace for `record.labels`, in the wording of this attempt.

        A mislabelled record's explanation would contradict its labels, so it gets a sentence that
        follows from the labels alone, as in `safeworld.export`.

        Raises:
            Unanswerable: the record has no description or explanation, or it quotes text that no caption
                holds: the trace would teach to invent what cannot be read.
        """
        if record.description is None or record.explanation is None:
            raise Unanswerable(
                "no description or explanation, so rules cannot write; use another generator"
            )
        captions = " ".join(caption.text for caption in record.captions)
        if any(text not in captions for text in _quoted(record.description)):
            raise Unanswerable("the captions misread the text that the truth quotes")
        names = dict(zip(self._policy.labels, [*self._names(), SAFE], strict=True))
        stance, top = _stance(record)
        if record.mislabelled:
            first, last = "Frame-0", f"Frame-{len(record.captions) - 1}"
            where = f"From {first} to {last}" if last != first else f"In {first}"
            flagged = " and ".join(names[label] for label in record.labels)
            shown = f"content under {flagged}" if flagged else "nothing that the policy blocks"
            doubt = _FROM_LABEL[stance].format(name=names[top])
            explanation = f"{where} the video shows {shown}{doubt}"
        else:
            shows = _agreement(record) >= SUPPORT
            wordings = _EVIDENCE[shows, stance]
            number = _decisive(record)
            key = hashlib.sha256(record.id.encode()).digest()[0] + attempt
            evidence = wordings[key % len(wordings)].format(
                frame=f"Frame-{number} ({record.captions[number].time_s:.1f} s)", name=names[top]
            )
            explanation = f"{record.explanation} {evidence}"
        try:
            return deliberation_answer(self._policy, record.description, explanation, record.labels)
        except ValueError as error:
            raise Unanswerable(str(error)) from error

    def _names(self) -> list[str]:
        return [category.name for category in self._policy.categories]


def _quoted(description: str) -> list[str]:
    """On-screen text, as SafeWorld's descriptions quote it."""
    return re.findall(r"the text ([A-Z]+(?: [A-Z]+)*)", description)


def _stance(record: Record) -> tuple[str, str]:
    """Whether the scores agree with the labels, and the label that they put first."""
    scores = record.scores or {}
    top = max(scores, key=scores.__getitem__)
    if scores[top] < 0.5:
        return "unsure", top
    return ("agree" if top in (record.labels or (SAFE,)) else "lean"), top


def _candidates(record: Record) -> list[int]:
    """Numbers of the captions in the interval of the violation; of the nearest one if none is."""
    times = [caption.time_s for caption in record.captions]
    if record.interval is None or not record.labels:
        return list(range(len(times)))
    start, end = record.interval
    inside = [number for number, time in enumerate(times) if start <= time <= end]
    return inside or [min(range(len(times)), key=lambda n: abs(times[n] - (start + end) / 2))]


def _decisive(record: Record) -> int:
    """The first of the frames whose captions say most of the truth in words that few others have."""
    truth = _words(f"{record.description} {record.explanation}")
    said = [_words(caption.text) & truth for caption in record.captions]
    spread = Counter(word for words in said for word in words)
    weight = {n: sum(1 / spread[word] for word in said[n]) for n in _candidates(record)}
    return max(weight, key=lambda n: (round(weight[n], 6), -n))


def _agreement(record: Record) -> float:
    """How well captions and truth agree, 0 to 1: of the decisive caption or all, whichever more.

    The harmonic mean of the truth's share in the captions and of the captions' in the truth.
    """
    told = _words(record.description or "")
    truth = told | _words(record.explanation or "")
    unsaid = _IDLE - truth
    # The first sentence of a caption names the place.
    said = [_words(caption.text.split(". ", 1)[-1]) - unsaid for caption in record.captions]
    every: set[str] = set().union(*(said[number] for number in _candidates(record)))
    best = 0.0
    for words in (every, said[_decisive(record)]):
        if words & told:
            covered, true = len(words & told) / len(told), len(words & truth) / len(words)
            best = max(best, 2 * covered * true / (covered + true))
    return best


_LITTLE = frozenset(
    re.findall(
        r"\w+",
        "a an and at both by for from green in is it of on once or orange person people purple red blue "
        "that the then to two who with yellow child",
    )
)


_IDLE = frozenset({"stand", "walk"})
"""What people in a frame do beside what is told of the video: nothing against a caption that says it too."""
_SEEN_AS = {
    "strik": "reach",
    "struck": "reach",
    "help": "reach",
    "fall": "lie",
    "ground": "lie",
    "laugh": "ha",
}
"""Stems of what the truth tells, a course of events, to what a single frame shows of it."""


def _words(text: str) -> set[str]:
    """Stems of the words that tell scenes apart; colours and persons are in all of them."""
    found = re.findall(r"\w+", text.casefold())
    stems = {re.sub(r"(?<=\w{3})(?:ing|es|ed|s)$", "", word) for word in found} - _LITTLE
    return {_SEEN_AS.get(stem, stem) for stem in stems}
