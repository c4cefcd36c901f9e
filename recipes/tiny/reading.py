"""Texts without a video that teach a small model to repeat what it has read, whatever it is.

Knows words and prompts. Knows nothing of models.

SafeWorld shows a few dozen phrases. A model that saw only them learns which one is likely, not to look up
what a caption quotes, and writes another that it knows. So the phrase of a clip is replaced by random
words wherever it stands, and the answer ends where it has been repeated: what random words mean is unknown.
Where labels may be shown, whole traces are among them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from safelens import prompts
from safelens.curate.trace_rules import RuleGenerator
from safelens.data.records import Record
from safelens.policy import Policy
from safelens.safeworld import wording
from safelens.verdict import Caption

_SYLLABLES = [c + v for c in "BCDFGHJKLMNPRSTVWZ" for v in "AEIOU"]
_ENDS = ("", "N", "R", "S", "T", "L", "M", "X", "P")
_PHRASES = sorted(
    (
        " ".join(lines)
        for pairs in (wording.INVITATIONS, wording.INSULTS, wording.HEADLINES, wording.SLOGANS)
        for pair in pairs
        for lines in pair
    ),
    key=len,
    reverse=True,
)
_KNOWN = sorted({word for phrase in _PHRASES for word in phrase.split()})

Text = tuple[str, str]
"""A prompt and the answer to it."""


def phrase_in(text: str | None) -> str | None:
    """The phrase of SafeWorld's wording that a text quotes."""
    return next((phrase for phrase in _PHRASES if phrase in (text or "")), None)


def random_phrase(rng: random.Random) -> str:
    """One to three words, known or made up."""
    return " ".join(_word(rng) for _ in range(rng.choice((1, 2, 2, 2, 3))))


def repeated(rng: random.Random) -> Text:
    """Random words, and the same again."""
    words = " ".join(_word(rng) for _ in range(rng.choice((4, 8, 12, 16))))
    return f" {words}", f" {words}"


def quoted(rng: random.Random, records: Sequence[Record], *, most: int) -> Text:
    """Captions of a clip whose phrase was replaced, and the two lines that quote it.

    Args:
        rng: Source of all choices.
        records: Clips for whose descriptions `phrase_in` holds.
        most: Captions shown at most.
    """
    captions, answer, old, new = _reworded(rng, records, most)
    lines = [f"Frame-{i} ({c.time_s:.1f} s): {c.text}" for i, c in enumerate(captions)]
    prompt = "\nFRAMES_LEVEL_ANALYSIS:\n" + "\n".join(lines) + "\n"
    return prompt.replace(old, new), answer


def filled_in(rng: random.Random, policy: Policy) -> Text:
    """The question, and an answer of its form that flags a category at random: form without content."""
    flagged = [rng.choice(policy.categories).id] if rng.random() < 0.5 else []
    prompt = prompts.question(policy) + prompts.screening_suffix()
    return prompt, prompts.guardrail_answer(policy, flagged)


def deliberated(
    rng: random.Random, policy: Policy, records: Sequence[Record], *, most: int
) -> Text:
    """As `quoted`, in the whole of S2's request, with made-up scores; every other time a trace instead.

    A trace is what S2 will be taught to write: an adapter alone, which leaves the embeddings as they are, does
    not learn words that its base has never written.
    """
    raw = [rng.random() ** 3 for _ in policy.labels]
    if rng.random() < 0.5:
        record = rng.choice(records)
        raw[policy.labels.index(record.label)] += rng.choice((0, 1, 4))
        captions = tuple(record.captions[at] for at in _some_frames(rng, record, most))
        scores = _scores(policy, raw)
        seen = record.model_copy(update={"captions": captions, "scores": scores})
        request = prompts.deliberation_request(policy, captions, scores)
        return request, RuleGenerator(policy).trace(seen, rng.randrange(3))
    reworded, answer, old, new = _reworded(rng, records, most)
    request = prompts.deliberation_request(policy, reworded, _scores(policy, raw))
    return request.replace(old, new), answer


def _scores(policy: Policy, raw: Sequence[float]) -> dict[str, float]:
    return {name: value / sum(raw) for name, value in zip(policy.labels, raw, strict=True)}


def _reworded(
    rng: random.Random, records: Sequence[Record], most: int
) -> tuple[list[Caption], str, str, str]:
    """Captions of a clip, the lines that quote its phrase reworded, the phrase, and what replaces it."""
    record = rng.choice(records)
    captions = [record.captions[at] for at in _some_frames(rng, record, most)]
    old, new = phrase_in(record.description), random_phrase(rng)
    assert old is not None
    explanation = record.explanation or ""
    cut = explanation.rfind(old) + len(old) if old in explanation else 0
    told = f"DESCRIPTION: {record.description}\nEXPLANATION:"
    answer = told + (f" {explanation[:cut]}" if cut else "")
    return captions, answer.replace(old, new), old, new


def _some_frames(rng: random.Random, record: Record, most: int) -> list[int]:
    """Frames in order, at least one of which shows the phrase."""
    phrase = phrase_in(record.description) or ""
    every = range(len(record.captions))
    showing = [at for at in every if phrase in record.captions[at].text]
    chosen = set(rng.sample(every, min(len(every), rng.randint(1, most))))
    return sorted(chosen | {rng.choice(showing)})


def readable(records: Sequence[Record]) -> list[Record]:
    """The records that `quoted` and `deliberated` can use."""
    found = []
    for record in records:
        phrase = phrase_in(record.description)
        if phrase and any(phrase in caption.text for caption in record.captions):
            found.append(record)
    return found


def _word(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(_KNOWN)
    made = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3))))
    return made + rng.choice(_ENDS)
