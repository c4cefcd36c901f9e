"""How policy, video and question are laid out and read: the prompt that S1 asks and S2 continues.

Knows the sequential policy, one text read from its first category to its last. Categories that are read
alone are the matter of `safewatch.parallel`. Knows nothing of what is made of the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, Protocol

import torch

from safelens import prompts
from safelens.branches import Span
from safelens.policy import Policy
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context, Head, Prefilled
from safelens.vlm_inputs import ChatLayout, EncodedVideo

Layout = Literal["policy_first", "video_first"]


def layout_of(vlm: VisionLanguageModel, policy: Policy, layout: Layout) -> ChatLayout:
    """The prompt's parts: policy as system message, or after the video as in the paper."""
    question = prompts.question(policy)
    if layout == "policy_first":
        return vlm.layout(question, system=prompts.policy_prompt(policy))
    return vlm.layout(f"{prompts.policy_prompt(policy)}\n\n{question}")


@dataclass(frozen=True)
class Asked:
    """What a question left behind.

    Attributes:
        states: hidden states of the question, shape (T, D).
        context: copies the cache that ends with it.
    """

    states: torch.Tensor
    context: Callable[[], Context]


class Prompt(Protocol):
    """How one policy is put to one model.

    Attributes:
        policy: its categories in the order in which requests and answers list them.
        parts: the chat, cut where the video stands.
    """

    policy: Policy
    parts: ChatLayout

    @property
    def head(self) -> Head:
        """What comes before every video, read once."""

    def prefill(self, videos: Sequence[EncodedVideo]) -> Prefilled:
        """Read a batch of videos, each with the question behind it."""

    def ask(self, moments: Sequence[Context]) -> list[Asked]:
        """Put the question again, behind each of some pieces of one video, which share a meter."""

    def spans(self, length: int) -> Sequence[Span]:
        """Where each category lies in a cache of so many tokens that ends with the question; empty if in one text."""


class SequentialPrompt:
    """The policy as one text. See :class:`Prompt`; a policy is read when it is first needed.

    Args:
        vlm: the model.
        policy: gives prompt and question.
        layout: order of the prompt.
    """

    def __init__(
        self, vlm: VisionLanguageModel, policy: Policy, layout: Layout = "policy_first"
    ) -> None:
        self.vlm = vlm
        self.policy = policy
        self.parts = layout_of(vlm, policy, layout)

    @cached_property
    def head(self) -> Context:
        """See :class:`Prompt`."""
        return self.vlm.prefill_text(self.parts.head)

    def prefill(self, videos: Sequence[EncodedVideo]) -> Prefilled:
        """See :class:`Prompt`."""
        return self.vlm.prefill_videos(self.head, videos, self.parts.tail)

    def ask(self, moments: Sequence[Context]) -> list[Asked]:
        """See :class:`Prompt`."""
        return ask_text(self.vlm, moments, self.vlm.ids(self.parts.tail))

    def spans(self, length: int) -> Sequence[Span]:
        """See :class:`Prompt`."""
        return ()


def ask_text(
    vlm: VisionLanguageModel, moments: Sequence[Context], tail: torch.Tensor
) -> list[Asked]:
    """Continue pieces of one video by the same tokens (L,): in one batch where all are of one length."""
    if len({moment.length for moment in moments}) > 1:
        return [asked for moment in moments for asked in ask_text(vlm, [moment], tail)]
    together = Context.stack(moments)
    together.spent = moments[0].spent
    hidden = vlm.extend(together, tail)

    def copy(row: int) -> Context:
        return together.select(row, [(0, together.length)])

    return [Asked(states, partial(copy, row)) for row, states in enumerate(hidden)]
