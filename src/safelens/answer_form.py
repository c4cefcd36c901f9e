"""The form of S2's answer, as a server with structured output is asked to keep it.

Knows the request's fields for that. The answer's words and its parser are the matter of `prompts`, which reads
all these forms: a server that ignores a field changes how often an answer can be read, never what it means.
"""

from __future__ import annotations

from typing import Any, Literal

from safelens.policy import Policy
from safelens.prompts import FALSE, TRUE, answer_skeleton

Structured = Literal["none", "regex", "json_schema"]
_SPECIAL = frozenset(r"\.^$*+?{}[]()|")
_PROSE = r"[^\n]+"


def form_fields(policy: Policy, structured: Structured) -> dict[str, Any]:
    """Fields of a request that force the answer's form.

    Args:
        policy: gives the categories.
        structured: "none", which every server takes; "regex", the three lines of the prompt, as vLLM takes it;
            or "json_schema", the same as one JSON object, as OpenAI, vLLM and SGLang take it.
    """
    if structured == "regex":
        return {"structured_outputs": {"regex": answer_regex(policy)}}
    if structured == "json_schema":
        form = {"name": "deliberation", "strict": True, "schema": answer_schema(policy)}
        return {"response_format": {"type": "json_schema", "json_schema": form}}
    return {}


def answer_regex(policy: Policy) -> str:
    """A regular expression of `prompts.deliberation_answer`, in the words that all engines know."""
    first, *rest = map(_literal, answer_skeleton(policy))
    choice = f"({TRUE}|{FALSE})"
    guardrail = first + "".join(choice + piece for piece in rest)
    return rf"DESCRIPTION: {_PROSE}\nEXPLANATION: {_PROSE}\n{guardrail}"


def answer_schema(policy: Policy) -> dict[str, Any]:
    """A JSON schema of the answer: reasons first, so that they are written before what they decide."""
    flags = {category.name: {"type": "boolean"} for category in policy.categories}
    text = {"type": "string"}
    return _object({"DESCRIPTION": text, "EXPLANATION": text, "GUARDRAIL": _object(flags)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _literal(text: str) -> str:
    # re.escape also escapes blanks and quotes, which other engines than Python's refuse.
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in text)
