"""What a reasoning trace must hold before a model learns from it: one function a rule.

Knows the record, the policy and the text. Knows nothing of who wrote it.

Every rule returns faults, none if the trace keeps it:

| rule | a trace is faulty when |
|---|---|
| `form` | it is not DESCRIPTION, EXPLANATION and GUARDRAIL, each once, readable and not empty |
| `categories` | GUARDRAIL names a category that is not the policy's, names one twice or lacks one |
| `label` | the flagged categories are not the record's labels |
| `grounding` | it refers to neither captions nor scores, or to a frame or score that is not there |
| `length` | it is too short to say anything, or longer than a reasoner's usual budget |
| `leak` | it speaks of the label that the generator was told and the reasoner will not see |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from safelens.data.records import Record
from safelens.policy import Policy
from safelens.prompts import (
    CategoryError,
    ParseError,
    Response,
    deliberation_answer,
    deliberation_request,
    parse_response,
    policy_prompt,
    question,
)

Rule = Literal["form", "categories", "label", "grounding", "length", "leak"]

DESCRIPTION_WORDS = (3, 90)
"""Fewest and most words of a description."""
EXPLANATION_WORDS = (5, 120)
"""Fewest and most words of an explanation. Both together are about what 256 tokens hold, the
default budget of `Deliberator`: a longer trace would teach to be cut off."""
SHARED_WORDS = 2
"""Content words that an explanation without a reference shares with the captions at least."""


@dataclass(frozen=True)
class Fault:
    """One rule that a trace breaks, and how."""

    rule: Rule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def check_trace(policy: Policy, record: Record, text: str) -> tuple[Response | None, list[Fault]]:
    """A trace read, and all that is wrong with it.

    Args:
        policy: gives the categories.
        record: gives labels, captions and scores.
        text: what the generator wrote.

    Returns:
        The answer, None where it cannot be read; and the faults, none for a good trace.
    """
    response, faults = check_form(policy, text)
    if response is not None:
        faults += check_label(record, response)
        faults += check_grounding(policy, record, response)
        faults += check_length(response)
        faults += check_leak(record, response)
    return response, faults


def canonical(policy: Policy, record: Record, response: Response) -> str:
    """The three lines that a model learns, from a trace without faults, whatever its wrapping."""
    return deliberation_answer(
        policy, response.description or "", response.explanation or "", record.labels
    )


def check_form(policy: Policy, text: str) -> tuple[Response | None, list[Fault]]:
    """Rules `form` and `categories`.

    A field that stands twice is a fault even where both agree: one may be a quotation of what the
    video shows, and then the description would end in the middle.
    """
    try:
        response = parse_response(policy, text)
    except CategoryError as error:
        return None, [Fault("categories", str(error))]
    except ParseError as error:
        return None, [Fault("form", str(error))]
    faults = []
    for key in ("DESCRIPTION", "EXPLANATION", "GUARDRAIL"):
        count = len(re.findall(rf"\b{key}\b[\"'*`]{{0,4}}\s{{0,9}}[:=]", text))
        if count != 1:
            faults.append(Fault("form", f"{count} fields {key}; expected one"))
    if not faults:
        try:
            deliberation_answer(policy, response.description or "", response.explanation or "", ())
        except ValueError as error:
            faults.append(Fault("form", str(error)))
    return (None if faults else response), faults


def check_label(record: Record, response: Response) -> list[Fault]:
    """Rule `label`: the trace flags what the record is labelled, no less and no more."""
    flagged = {category for category, flag in response.flags.items() if flag}
    if flagged == set(record.labels):
        return []
    found, wanted = (", ".join(sorted(s)) or "nothing" for s in (flagged, set(record.labels)))
    return [Fault("label", f"flags {found}; expected {wanted}")]


def check_grounding(policy: Policy, record: Record, response: Response) -> list[Fault]:
    """Rule `grounding`: the explanation refers to captions or scores, and only to real ones.

    Any of these counts as a reference; the first three mean the same in every language, since they
    repeat how `prompts.deliberation_request` writes frames, times and probabilities:

    - a frame by its number, `Frame-3`,
    - a caption's time to the tenth of a second, `4.5 s`,
    - a score as written or rounded, to two decimals or more, or as a percentage,
    - two different content words of the captions. A content word has four letters or more and is
      not one that the prompt itself uses, so that "the video violates the policy" refers to nothing.

    A frame that does not exist, or a number written as a probability that is none of the scores, is
    a fault beside any reference.
    """
    text = response.explanation or ""
    prose = f"{response.description or ''}\n{text}"
    last = len(record.captions) - 1
    faults = [
        Fault("grounding", f"names Frame-{number}; the last is Frame-{last}")
        for number in sorted({int(n) for n in _FRAME.findall(prose)})
        if number > last
    ]
    # A percentage may be what a video shows ("50% off"); such a probability has no other reading.
    faults += [
        Fault("grounding", f"quotes the probability {number}; it is none of the scores")
        for number in dict.fromkeys(_PROBABILITY.findall(prose))
        if not _is_score(record, number)
    ]
    times = {f"{caption.time_s:.1f}" for caption in record.captions}
    refers = (
        any(int(number) <= last for number in _FRAME.findall(text))
        or any(f"{float(number):.1f}" in times for number in _TIME.findall(text))
        or any(_is_score(record, number) for number in _PROBABILITY.findall(text))
        or any(_is_score(record, number, percent=True) for number in _PERCENT.findall(text))
        or len(_shared(policy, record, text)) >= SHARED_WORDS
    )
    if not refers:
        faults.append(Fault("grounding", "the explanation refers to neither captions nor scores"))
    return faults


def check_length(response: Response) -> list[Fault]:
    """Rule `length`, in words; a letter of a script without spaces counts as a word."""
    faults = []
    for key, text, (fewest, most) in (
        ("description", response.description, DESCRIPTION_WORDS),
        ("explanation", response.explanation, EXPLANATION_WORDS),
    ):
        count = len(_WORDS.findall(text or ""))
        if not fewest <= count <= most:
            faults.append(Fault("length", f"{key} of {count} words; expected {fewest} to {most}"))
    return faults


def check_leak(record: Record, response: Response) -> list[Fault]:
    """Rule `leak`: no talk of the label or answer that the generator was given.

    The phrases are English. One that the captions hold is not a leak: the video shows it.
    """
    seen = " ".join(caption.text for caption in record.captions).casefold()
    prose = f"{response.description or ''}\n{response.explanation or ''}"
    return [
        Fault("leak", f"says {phrase!r}, which the reasoner cannot know")
        for phrase in dict.fromkeys(match.group() for match in _LEAK.finditer(prose))
        if phrase.casefold() not in seen
    ]


_FRAME = re.compile(r"\bframes?[-\s#]{0,2}(\d{1,4})\b", re.IGNORECASE)
_TIME = re.compile(r"(?<![\d.])(\d{1,5}\.\d)\s?(?:s\b|sec)")
_PROBABILITY = re.compile(r"(?<![\d.,$€£])(0\.\d{2,6}|1\.0{2,6})(?!\d)(?!\s?(?:s\b|sec|%))")
_PERCENT = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{1,4})?)\s?%")
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’][^\W{_UNSPACED}]+)*")
_CONTENT = re.compile(r"[^\W\d_]{4,}")
_GIVEN = "given|provided|assigned|correct|true|target|gold|dataset|original|reference|annotated"
_LEAK = re.compile(
    rf"ground[-\s]truth|\b(?:{_GIVEN})\s(?:labels?|labell?ing|answer|response|annotation)\b"
    r"|\baccording to the (?:labels?|annotat\w+)\b|\b(?:the|its) labels? (?:says?|states?|indicates?)\b"
    r"|\bhuman annotat\w+\b",
    re.IGNORECASE,
)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "about after again also although always another around because been before being between both "
        "does each either else even ever every from have having here however into itself just like made "
        "makes many more most much nothing only other over same shown shows some still such than that "
        "their them then there these they this those through under until very were what when where which "
        "while will with within without would",
    )
)


def _is_score(record: Record, number: str, *, percent: bool = False) -> bool:
    """Whether a number is one of the scores, rounded or cut to its decimals."""
    scale = 100 if percent else 1
    unit = 10.0 ** -len(number.partition(".")[2]) / scale
    # The prompt shows scores with three decimals: what they hide cannot be asked for.
    near = max(unit, 0.001)
    return any(abs(s - float(number) / scale) < near for s in (record.scores or {}).values())


def _shared(policy: Policy, record: Record, text: str) -> set[str]:
    seen = _content(" ".join(caption.text for caption in record.captions))
    return (seen & _content(text)) - _prompt_words(policy)


def _content(text: str) -> set[str]:
    return {word.casefold() for word in _CONTENT.findall(text)} - _FUNCTION_WORDS


@lru_cache(maxsize=8)
def _prompt_words(policy: Policy) -> frozenset[str]:
    names = " ".join(category.name for category in policy.categories)
    frame = deliberation_request(policy, (), dict.fromkeys(policy.labels, 0.0))
    intro = policy_prompt(policy).partition("\n")[0]
    return frozenset(_content(f"{intro} {names} {question(policy)} {frame}"))
