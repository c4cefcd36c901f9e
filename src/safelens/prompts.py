"""Every text a model reads about a policy, and the parser of what it writes.

Knows the wording (arXiv 2605.17610, appendix L) and the answer format, both generated from a Policy.
Knows nothing about tokenizers, chat templates or models.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from safelens.policy import SAFE, Category, Policy, name_key
from safelens.verdict import Caption

TRUE = " true"
"""How the forced answer continues after a piece of `answer_skeleton` when a category is violated."""
FALSE = " false"
"""How the forced answer continues when a category is not violated."""

_INTRO = (
    "You check videos against a safety policy. "
    "Flag what a [BLOCKED] rule describes, unless an [ALLOWED] rule permits it."
)
_MOST_RELEVANT = "Set the value to true ONLY for the most relevant categories found in the video."
_FORM_AFTER_VIDEO = 12
"""Most categories whose answer's form follows the video. That of more follows the rules instead: it would be read
anew with every video, and cost more than the video."""
_CAPTIONS = (
    "For convenience, a frame-level description of the video is provided below for your analysis."
    "\nFRAMES_LEVEL_ANALYSIS:"
)
_SCORES = (
    "You are provided with multiclass confidence scores (higher values mean more likely). "
    "Consider them as helpful signals, but make the final classification by evaluating all "
    "available information in the input and the scores together."
    "\nINITIAL_CONFIDENCE_SCORES_FOR_GUIDANCE:"
)
_DELIBERATE = (
    "If no harmful content is detected, return {}.\n"
    "The first line must be the summarization of the content of the video, beginning with "
    "DESCRIPTION:\n"
    "In second line, for each category flagged as true, provide a brief explanation of why it was "
    "flagged and list the specific policy violations within that category, beginning with "
    "EXPLANATION:\n"
    'The last line must be the JSON format of "GUARDRAIL", beginning with GUARDRAIL:'
)


class ParseError(ValueError):
    """A model's text that holds no readable answer; never to be taken for a safe one."""


class CategoryError(ParseError):
    """An answer whose categories are not the policy's: one is unknown, repeated or missing."""


@dataclass(frozen=True)
class Response:
    """What a model answered.

    Attributes:
        description: The video's content in the model's words, or None.
        explanation: Why it was flagged or not, or None.
        flags: Category id to whether it is violated, every category, in policy order.
    """

    description: str | None
    explanation: str | None
    flags: dict[str, bool]


def policy_prompt(policy: Policy) -> str:
    """The system message: what to do, then every category with its core value and rules; for many, the answer's form."""
    blocks = [_INTRO]
    for number, category in enumerate(policy.categories, start=1):
        blocks.append(f"{number}. {_category_text(category)}")
    if len(policy.categories) > _FORM_AFTER_VIDEO:
        blocks.append(_form(policy))
    return "\n\n".join(blocks)


def policy_intro() -> str:
    """What comes before the categories where each is read alone."""
    return f"{_INTRO}\n\n"


def category_block(category: Category) -> str:
    """A category as it is read alone: between anchors, without a number, since no place is its own.

    Its name stands behind its rules as well, as answers write it: a model that reads forward knows nothing of the
    rules where the name stands before them, and is asked for a category by its name.
    """
    return f"<policy>\n{_category_text(category)}\n</policy {_quoted(category.name)}>\n"


def _category_text(category: Category) -> str:
    lines = [category.name, f"Core Value: {category.core_value}"]
    return "\n".join([*lines, *(f"[{rule.kind.upper()}] {rule.text}" for rule in category.rules)])


def question(policy: Policy) -> str:
    """What follows the video: the question, and the answer's form with every category name unless they are many."""
    asked = f"Which categories of the policy does the video violate? {_MOST_RELEVANT}"
    if len(policy.categories) > _FORM_AFTER_VIDEO:
        return asked
    return f"{asked}\n{_form(policy)}"


def _form(policy: Policy) -> str:
    names = ", ".join(f"{_quoted(c.name)}: bool" for c in policy.categories)
    return f"GUARDRAIL: {{{names}}}"


def open_question() -> str:
    """The question where categories are read alone: it names none, so none comes first or last in it."""
    return (
        "Which categories of the policy does the video violate? "
        f'{_MOST_RELEVANT}\nGUARDRAIL: {{"category": bool, ...}}'
    )


def screening_suffix() -> str:
    """What closes the question when only the guardrail answer is wanted."""
    return '\nThe reply must be in the JSON format of "GUARDRAIL", beginning with GUARDRAIL:'


def deliberation_request(
    policy: Policy, captions: Sequence[Caption], scores: Mapping[str, float] | None
) -> str:
    """What follows the question when the model is to reason.

    Args:
        policy: The policy that the question was made from.
        captions: One per frame, in time order; none leaves the section out.
        scores: A probability for each of `policy.labels`; None leaves the section out.

    Raises:
        ValueError: When the scores are not those of the policy's labels, or not in 0..1.
    """
    parts = []
    if scores is not None:
        _check_scores(policy, scores)
        parts.append(_SCORES)
        names = [*(category.name for category in policy.categories), SAFE]
        parts += [
            f"{name}: Probability = {scores[label]:.3f}"
            for label, name in zip(policy.labels, names, strict=True)
        ]
    parts.append(_DELIBERATE)
    return frame_captions(captions) + "\n" + "\n".join(parts)


def frame_captions(captions: Sequence[Caption]) -> str:
    """The section that tells the captions, one per frame in time order; empty for none."""
    lines = [
        f"Frame-{i} ({caption.time_s:.1f} s): {_caption(caption.text)}"
        for i, caption in enumerate(captions)
    ]
    return "\n" + "\n".join([_CAPTIONS, *lines]) if lines else ""


def guardrail_answer(policy: Policy, labels: Iterable[str]) -> str:
    """The line that states the violated categories.

    Args:
        policy: Gives names and their order.
        labels: Ids of the violated categories; none, or "safe" alone, for a harmless video.

    Raises:
        ValueError: When a label is not of the policy, or "safe" comes with others.
    """
    chosen = set(labels)
    if unknown := chosen - set(policy.labels):
        raise ValueError(f"labels {sorted(unknown)} are not of {policy.id!r}: {policy.labels}")
    if SAFE in chosen and len(chosen) > 1:
        raise ValueError(f"labels {sorted(chosen)}: {SAFE!r} excludes every other label")
    pieces = answer_skeleton(policy)
    booleans = [TRUE if category.id in chosen else FALSE for category in policy.categories]
    return "".join(a + b for a, b in zip(pieces, [*booleans, ""], strict=True))


def deliberation_answer(
    policy: Policy, description: str, explanation: str, labels: Iterable[str]
) -> str:
    """The three lines DESCRIPTION, EXPLANATION and GUARDRAIL of a reasoned answer.

    Raises:
        ValueError: As `guardrail_answer`; also when a text is empty or would itself read as a field.
    """
    for key, text in (("description", description), ("explanation", explanation)):
        if not text.strip() or _FIELD.search(plain_text(text)):
            raise ValueError(f"{key} {text!r}: expected a text without the fields of an answer")
    return (
        f"DESCRIPTION: {plain_text(description)}\nEXPLANATION: {plain_text(explanation)}\n"
        f"{guardrail_answer(policy, labels)}"
    )


def answer_skeleton(policy: Policy) -> list[str]:
    """The forced text of an answer: piece i comes before boolean i, the last piece closes it.

    Between two pieces the model chooses `TRUE` or `FALSE`; the whole equals `guardrail_answer`.
    """
    names = [_quoted(category.name) for category in policy.categories]
    first = category_opening(policy.categories[0])
    return [first, *(f", {name}:" for name in names[1:]), "}"]


def category_opening(category: Category) -> str:
    """An answer up to the boolean of a single category."""
    return f"GUARDRAIL: {{{_quoted(category.name)}:"


def plain_text(text: str) -> str:
    """Text on one line, as it is seen, in which no chat template or tokenizer finds a control token.

    Captions repeat what is written in a video, and a video may show `<|im_end|>`: with letters that look
    alike, or with others between them that nobody sees. What is kept is NFKC without invisible characters.
    """
    seen = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    line = " ".join(unicodedata.normalize("NFKC", seen).split())
    return _OPENS.sub(r"\g<0> ", line).replace("|>", "| >")


def _caption(text: str) -> str:
    """A caption as data: it opens no section and holds no field, so that a quotation of it answers nothing."""
    return _MARKS.sub(lambda mark: mark.group().lower(), plain_text(text)[:_LONGEST_CAPTION])


def without_thoughts(text: str) -> str:
    """An answer without the thoughts before it, which servers without a reasoning parser leave in."""
    return text.rpartition("</think>")[2].strip()


def parse_response(policy: Policy, text: str) -> Response:
    r"""Read a model's answer, its fields in any order.

    Read as well: `GUARDRAIL = {{...}}`, a Markdown or JSON wrapping of the fields, Python's True and
    False and quotes, keys such as "C1(Sexual Content)" (the number is ignored, the name counts),
    `{}` for nothing flagged, and an object that lists only the flagged categories, all true.

    Raises:
        ParseError: When no line begins with a GUARDRAIL object, one is unreadable or cut off, two
            disagree, or one has a category that is not a boolean, or (`CategoryError`) that is
            unknown, repeated or missing beside a false one.
    """
    flags: dict[str, bool] | None = None
    answered = False
    rest: list[str] = []
    end = 0
    while match := _GUARDRAIL.search(text, end):
        if not match.group("brace"):
            raise ParseError(f"GUARDRAIL without an object at: {_clip(text[match.start() :])}")
        named, object_end = _read_object(text, match.end() - 1)
        found = _complete(policy, named)
        if flags is not None and flags != found:
            raise ParseError("two GUARDRAIL objects that disagree; expected one")
        flags = found
        answered = answered or _begins(text, match.start())
        rest.append(text[end : match.start()])
        end = object_end
    # A description may quote what a video shows, even a GUARDRAIL line: alone it is no answer.
    if flags is None or not answered:
        raise ParseError(f"no line begins with 'GUARDRAIL: {{...}}' in: {_clip(text)}")
    prose = "\nGUARDRAIL:\n".join([*rest, text[end:]])
    return Response(_field(prose, "DESCRIPTION"), _field(prose, "EXPLANATION"), flags)


_UNSEEN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs"))
_OPENS = re.compile(r"<(?=\S)|\[(?=/?[A-Z_])")
"""Begins `<|im_end|>`, `<image>`, `</think>` and the like, `[INST]`, and the policy's own `[ALLOWED]`."""
_LONGEST_CAPTION = 1000
_MARKS = re.compile(
    "FRAMES_LEVEL_ANALYSIS|INITIAL_CONFIDENCE_SCORES_FOR_GUIDANCE|DESCRIPTION|EXPLANATION|GUARDRAIL"
)
_WRAP = r"[\"'*`]{0,4}"
_GUARDRAIL = re.compile(
    rf"{_WRAP}(?<!\w)GUARDRAIL{_WRAP}\s{{0,9}}[:=](?P<brace>[*`]{{0,3}}\s{{0,9}}(?:```\w{{0,9}}\s{{0,9}})?\{{)?"
)
_FIELD = re.compile(
    rf"(?<![^\s{{,#]){_WRAP}(?P<key>DESCRIPTION|EXPLANATION|GUARDRAIL){_WRAP}\s{{0,9}}[:=]"
)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'')
_WORD = re.compile(r"[^\s,{}\"']+")
_JSON = re.compile(r"\s*(?:```\w{0,9}\s*)?\{\s*\"")
_NUMBERED = re.compile(r"C\d{1,3}\s?\((.*)\)", re.DOTALL)


def _begins(text: str, at: int) -> bool:
    """Whether the field at `at` begins a line, or is a key of a text that is one JSON object."""
    if not text[:at].rpartition("\n")[2].strip(" \t\r>#-*"):
        return True
    key = text.startswith('"GUARDRAIL"', at) and text[:at].rstrip().endswith(("{", ","))
    return key and _JSON.match(text) is not None


def _read_object(text: str, start: int) -> tuple[dict[str, bool], int]:
    """Names to booleans of the object whose brace is at `start`, and the place after its end."""
    at = start + 1
    double = text.startswith("{", at)
    at = _space(text, at + double)
    named: dict[str, bool] = {}
    while not text.startswith("}", at):
        key = _STRING.match(text, at)
        if not key:
            raise ParseError(f"expected a quoted category name or '}}' at: {_clip(text[at:])}")
        name = _unquoted(key.group())
        at = _space(text, key.end())
        if not text.startswith(":", at):
            raise ParseError(f"expected ':' after {name!r}, found: {_clip(text[at:])}")
        at = _space(text, at + 1)
        word = _WORD.match(text, at)
        value = word.group() if word else ""
        if value not in ("true", "True", "false", "False"):
            raise ParseError(f"expected true or false for {name!r}, found: {_clip(text[at:])}")
        if name in named:
            raise CategoryError(f"category {name!r} twice in one GUARDRAIL; expected it once")
        named[name] = value in ("true", "True")
        at = _space(text, at + len(value))
        if text.startswith(",", at):
            at = _space(text, at + 1)
        elif not text.startswith("}", at):
            raise ParseError(f"expected ',' or '}}' after {name!r}, found: {_clip(text[at:])}")
    at += 1
    if double:
        at = _space(text, at)
        if not text.startswith("}", at):
            raise ParseError(f"expected '}}}}' to close '{{{{', found: {_clip(text[at:])}")
        at += 1
    return named, at


def _complete(policy: Policy, named: Mapping[str, bool]) -> dict[str, bool]:
    """Flags by category id from flags by written name."""
    by_name = {name_key(category.name): category.id for category in policy.categories}
    found: dict[str, bool] = {}
    for name, value in named.items():
        category_id = by_name.get(name_key(name))
        if category_id is None and (numbered := _NUMBERED.fullmatch(name.strip())):
            category_id = by_name.get(name_key(numbered.group(1)))
        if category_id is None:
            names = [category.name for category in policy.categories]
            raise CategoryError(f"unknown category {name!r}; expected one of {names}")
        if category_id in found:
            raise CategoryError(f"category {name!r} twice in one GUARDRAIL; expected it once")
        found[category_id] = value
    missing = [c.name for c in policy.categories if c.id not in found]
    # Something false is listed, so this is no list of the flagged ones: the rest is unknown.
    if missing and not all(found.values()):
        raise CategoryError(f"GUARDRAIL says nothing of {missing}; expected every category")
    return {category.id: found.get(category.id, False) for category in policy.categories}


def _field(prose: str, key: str) -> str | None:
    """The first text of a field, up to the next field; None when absent or empty."""
    marks = list(_FIELD.finditer(prose))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark.group("key") == key:
            value = prose[mark.end() : following.start() if following else len(prose)]
            value = value.strip(" \t\r\n*#`")
            wrapped = _STRING.match(value)
            if wrapped and not value[wrapped.end() :].strip(" \t\r\n,}"):
                value = _unquoted(wrapped.group()).strip()
            return value or None
    return None


def _check_scores(policy: Policy, scores: Mapping[str, float]) -> None:
    if set(scores) != set(policy.labels):
        raise ValueError(f"scores for {sorted(scores)}; expected one for each of {policy.labels}")
    for label, score in scores.items():
        if not (math.isfinite(score) and 0.0 <= score <= 1.0):
            raise ValueError(f"score {score} for {label!r}; expected a probability in 0..1")


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _unquoted(token: str) -> str:
    body = token[1:-1]
    if token[0] == "'":
        body = body.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(json.loads(f'"{body}"', strict=False))
    except ValueError as error:
        raise ParseError(f"expected a JSON string, found: {_clip(token)}") from error


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _clip(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
