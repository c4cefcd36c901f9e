"""SafeWatch-Bench in its three published forms: entries to records.

Knows the benchmark's {video_path, labels, subcategories}, the raw SFT entry {id, video, conversations}
and swift's {query, response, history, videos}. Knows nothing of files: `read` brings the entries.

Integers mean SafeWatch's own order of categories, and only in the benchmark. In the adaptive part of
the SFT data every prompt has its own sample of categories under its own names and numbers; there
the names in that very prompt decide, and what was not asked for is unknown: an answer that flags
nothing in such a prompt is a stock safe sentence, whatever the video shows. `Record.asked` keeps
this, and `Record.undecided` tells those answers from safe ones.
"""

import contextlib
import json
import re
from typing import Any

from safelens.data.names import CategoryNames, bare_policy
from safelens.data.problems import LeftOut
from safelens.data.records import SAFE
from safelens.policy import Policy, PolicyError
from safelens.prompts import ParseError, deliberation_answer, guardrail_answer, parse_response

BENIGN = "benign"
"""Subcategory of the benchmark's harmless videos."""

_OBJECT = re.compile(r"GUARDRAIL[\"'*`]{0,4}\s*[:=][*`\s]{0,9}\{+(?P<body>[^{}]*)\}")
_KEY = re.compile(r"\"((?:[^\"\\\n]|\\.)*)\"\s*:")
_LISTED = re.compile(r"<BEGIN HARMFUL CATEGORIES>(.*?)<END HARMFUL CATEGORIES>", re.DOTALL)
_MENTION = re.compile(r"\bC\d{1,2}\s?\([^()]*\)")


def benchmark_fields(
    entry: dict[str, Any], names: CategoryNames, number: int | None, subcategory: str
) -> dict[str, Any]:
    """Video, labels and scenario of a benchmark entry.

    Args:
        entry: {video_path, labels, subcategories}.
        names: of the policy.
        number: k of the folder Ck that the entry is filed under, if it lies in one; its category
            comes first among the labels.
        subcategory: that the file is about; `benign` for harmless videos.

    Raises:
        LeftOut: the entry lacks something, or a label is unknown to the benchmark or the policy.
    """
    labels = entry.get("labels")
    if not isinstance(labels, list):
        raise LeftOut("bad_entry", f"labels is {_shown(labels)}; expected a list of 1 to 6")
    said = entry.get("subcategories") or []
    if not labels and (subcategory != BENIGN or (said and said != [BENIGN])):
        raise LeftOut(
            "unknown_label",
            f"labels is empty, but the entry is filed under {subcategory!r} with subcategories"
            f" {_shown(said)}; only {BENIGN!r} entries are safe without a label",
        )
    found: list[str] = []
    for label in labels:
        category = None
        if isinstance(label, int) and not isinstance(label, bool):
            category = names.numbered(label)
        elif isinstance(label, str):
            category = names.find(label)
        if category is None or category == SAFE:
            raise LeftOut(
                "unknown_label",
                f"label {_shown(label)}: expected a number of SafeWatch, 1 to 6, whose category"
                f" policy {names.policy.id!r} has",
            )
        found.append(category)
    filed = None if number is None else names.numbered(number)
    found.sort(key=lambda category: (category != filed, names.policy.labels.index(category)))
    return {
        "video": _text(entry, "video_path"),
        "labels": tuple(dict.fromkeys(found)),
        "scenario": f"{filed}/{subcategory}" if filed in found else None,
    }


def conversation_fields(entry: dict[str, Any], names: CategoryNames) -> dict[str, Any]:
    """Video, labels and texts of a raw SFT entry {id, video, conversations}. Raises LeftOut."""
    turns = entry.get("conversations")
    if not isinstance(turns, list) or len(turns) != 2:
        raise LeftOut("bad_entry", f"conversations is {_shown(turns)}; expected human, then gpt")
    for turn, speaker in zip(turns, ("human", "gpt"), strict=False):
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            raise LeftOut("bad_entry", f"found {_shown(turn)}; expected a turn from {speaker!r}")
    prompt, response = (_text(turn, "value") for turn in turns[:2])
    return {"video": _text(entry, "video"), **answer_fields(prompt, response, names)}


def swift_fields(entry: dict[str, Any], names: CategoryNames) -> dict[str, Any]:
    """Video, labels and texts of a swift entry {query, response, history, videos}. Raises LeftOut."""
    videos = entry.get("videos")
    if not (isinstance(videos, list) and len(videos) == 1 and isinstance(videos[0], str)):
        raise LeftOut("bad_entry", f"videos is {_shown(videos)}; expected a list of one path")
    if entry.get("history"):
        raise LeftOut("bad_entry", "history is not empty; expected one question and one answer")
    query, response = _text(entry, "query"), _text(entry, "response")
    return {"video": videos[0], **answer_fields(query, response, names)}


def answer_fields(prompt: str, response: str, names: CategoryNames) -> dict[str, Any]:
    """Labels, texts and what was asked, from a prompt and the answer to it.

    The answer is rewritten with the policy's names, fields in the order that S2 writes, and speaks
    of the categories that were asked for, no others.

    Raises:
        LeftOut: a name cannot be mapped, or the answer cannot be read.
    """
    policy = names.policy
    written = _names_in(prompt) or _keys_in(response)
    if not written:
        raise LeftOut(
            "unreadable_response",
            "neither the prompt nor the response names categories: not a moderation example",
        )
    asked: list[tuple[str, str]] = []
    for name in written:
        category_id = names.find(name)
        if category_id is None or category_id == SAFE:
            raise LeftOut(
                "unknown_name",
                f"category {name!r} is none of policy {policy.id!r} and no known name of SafeWatch;"
                f" if it means one, say so with --map {json.dumps(name)}=ID",
            )
        asked.append((category_id, name))
    try:
        # A policy of just this prompt's categories under its names: the usual parser does the rest.
        answer = parse_response(bare_policy(asked), response)
    except PolicyError as error:
        reason = "; ".join(problem.message for problem in error.problems)
        raise LeftOut("unknown_name", f"the prompt's categories {written}: {reason}") from None
    except ParseError as error:
        raise LeftOut("unreadable_response", str(error)) from None

    covered = tuple(c for c in policy.categories if c.id in answer.flags)
    labels = tuple(c.id for c in covered if answer.flags[c.id])
    description = _renamed(answer.description, names)
    explanation = _renamed(answer.explanation, names)
    part = bare_policy((c.id, c.name) for c in covered)
    return {
        "labels": labels,
        "asked": tuple(c.id for c in covered) if len(covered) < len(policy.categories) else None,
        "response": _response(part, description, explanation, labels),
        "description": description,
        "explanation": explanation,
    }


def _names_in(prompt: str) -> list[str]:
    """The category names that a prompt asks for: those of its answer template, else of its list."""
    for template in _OBJECT.finditer(prompt):
        if keys := _KEY.findall(template.group("body")):
            return [_bare(key) for key in keys]
    if listed := _LISTED.search(prompt):
        pieces = (piece.partition(":")[2].strip() for piece in listed.group(1).split(";"))
        return [piece for piece in pieces if piece]
    return []


def _keys_in(response: str) -> list[str]:
    found = (_KEY.findall(part.group("body")) for part in _OBJECT.finditer(response))
    return [_bare(key) for key in next(found, [])]


def _bare(key: str) -> str:
    """A key's name without the number before it and the escapes of JSON."""
    with contextlib.suppress(ValueError):  # left as it stands, it maps to nothing and is reported
        key = str(json.loads(f'"{key}"'))
    numbered = re.fullmatch(r"C\d{1,3}\s?\((.*)\)", key.strip())
    return numbered.group(1).strip() if numbered else key.strip()


def _renamed(text: str | None, names: CategoryNames) -> str | None:
    """A text whose mentions such as "C2(Adult Material)" are the policy's names, without numbers."""

    def name(match: re.Match[str]) -> str:
        category_id = names.find(match.group())
        known = category_id is not None and category_id != SAFE
        return names.policy.category(category_id).name if known and category_id else match.group()

    return None if text is None else _MENTION.sub(name, text)


def _response(
    policy: Policy, description: str | None, explanation: str | None, labels: tuple[str, ...]
) -> str:
    if description and explanation:
        try:
            return deliberation_answer(policy, description, explanation, labels)
        except ValueError:
            pass  # a text that would read as a field of the answer: the answer alone is certain
    return guardrail_answer(policy, labels)


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise LeftOut("bad_entry", f"{key} is {_shown(value)}; expected text")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:80] + "..."
