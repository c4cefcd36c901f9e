"""A model as generator of reasoning traces: what it is asked, the triplet of section 4.2 in words.

Knows the wording, and what to take of the answer. It stands apart from `prompts.py` because its reader is the teacher: nothing here
is ever read by a model that moderates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from safelens.curate.trace_generator import Attempt
from safelens.data.records import Record
from safelens.policy import SAFE, Policy
from safelens.prompts import (
    deliberation_request,
    guardrail_answer,
    plain_text,
    policy_prompt,
    question,
    without_thoughts,
)

if TYPE_CHECKING:
    from safelens.chat_client import ChatClient

_QUOTED = 4000
Message = dict[str, str]
"""One message of a chat: role and content."""

_TASK = (
    "You write training examples for a model that reasons before it answers. You get what that model "
    "gets of a video (captions of its frames, and the confidence scores of a fast classifier), the "
    "original response, and the categories that are known to be violated. Rewrite the response so "
    "that its explanation reaches these categories by reasoning.\n"
    "- EXPLANATION weighs the evidence: name the frames that decide (such as Frame-3), say what "
    "their captions show, and whether the scores agree with it; where they do not, say why the "
    "captions or the scores mislead. For each violated category, say which rule is broken; if none "
    "is, say what makes the video allowed.\n"
    "- Quote only frames and scores that are given. Invent nothing.\n"
    "- The model does not see the original response or the known categories: never mention them, "
    "nor a label, an annotation or this task.\n"
    "- DESCRIPTION in at most 50 words, EXPLANATION in at most 100, each on one line, and GUARDRAIL "
    "with exactly the known categories true. Write these three lines and nothing else."
)


def trace_messages(policy: Policy, record: Record, rejected: Sequence[Attempt]) -> list[Message]:
    """The chat that asks for a record's trace (Algorithm 1, line 16).

    What all records share comes first, so that a server with a prefix cache reads it once.

    Args:
        policy: gives categories and names.
        record: gives captions, scores, labels and the original response.
        rejected: earlier answers, told with what was wrong with them.
    """
    names = [policy.category(label).name for label in record.labels]
    given = record.response or guardrail_answer(policy, record.labels)
    original = "\n".join(plain_text(line) for line in given.splitlines())
    messages = [
        {"role": "system", "content": f"{_TASK}\n\nPOLICY\n{policy_prompt(policy)}"},
        {
            "role": "user",
            "content": (
                f"WHAT THE MODEL GETS\n{question(policy)}"
                f"{deliberation_request(policy, record.captions, record.scores)}\n\n"
                f"ORIGINAL RESPONSE\n{original}\n\n"
                f"KNOWN CATEGORIES\n{', '.join(names) or SAFE}\n\n"
                "LAST LINE OF YOUR ANSWER\n"
                f"{guardrail_answer(policy, record.labels)}"
            ),
        },
    ]
    for attempt in rejected:
        why = "; ".join(map(str, attempt.faults))
        messages += [
            {"role": "assistant", "content": plain_text(attempt.text)[:_QUOTED] or "(empty)"},
            {
                "role": "user",
                "content": f"This was rejected: {why}. Write the three lines again without this fault.",
            },
        ]
    return messages


class EndpointGenerator:
    """Has a model behind an endpoint write the trace."""

    def __init__(self, client: ChatClient, policy: Policy) -> None:
        self._client = client
        self._policy = policy

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)

    async def write(self, record: Record, rejected: Sequence[Attempt], *, fresh: bool) -> str:
        """The model's answer without its thoughts; raises as `ChatClient.ask` does."""
        messages = trace_messages(self._policy, record, rejected)
        reply = await self._client.ask(messages, fresh=fresh)
        return without_thoughts(reply.text)
