"""S2, deliberation: captions, scores and the video to a reasoned answer that is always well formed.

Knows the prompt of appendix L and how to decode under it. Does not know when it is called.

The reasoning is the model's own, within a budget. The GUARDRAIL line is forced: its text comes from
the policy, only the booleans are the model's, and their probabilities are the category scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safelens import prompts
from safelens.policy import Policy
from safelens.prompts import FALSE, TRUE
from safelens.screen import Layout, layout_of
from safelens.verdict import Caption
from safelens.video import Clip
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context
from safelens.vlm_cost import Spent

ADAPTER = "deliberate"
_BEGIN = "DESCRIPTION:"
_STOP = "GUARDRAIL"


@dataclass(frozen=True)
class Deliberated:
    """What S2 says of one clip.

    Attributes:
        description: what the video shows, in the model's words.
        explanation: why it is flagged or not, in the model's words.
        flags: category id to the model's boolean.
        scores: category id to the probability of true.
        text: the whole answer.
        spent: what it cost, where another machine's model answered; here it is the cache's to count.
    """

    description: str | None
    explanation: str | None
    flags: dict[str, bool]
    scores: dict[str, float]
    text: str
    spent: Spent | None = None


class Deliberator:
    """S2 for one policy.

    Args:
        vlm: the reasoner: S1's own model, whose cache is continued, or another.
        policy: gives request, answer and classes.
        adapter: LoRA adapter that is switched on after the question; None for a model that needs none.
        max_new_tokens: budget for description and explanation.
        layout: order of the prompt, of use where the model is not S1's.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        policy: Policy,
        *,
        adapter: str | None = ADAPTER,
        max_new_tokens: int = 256,
        layout: Layout = "policy_first",
    ) -> None:
        self.vlm = vlm
        self.policy = policy
        self.adapter = adapter
        self.max_new_tokens = max_new_tokens
        self.parts = layout_of(vlm, policy, layout)
        self._head: Context | None = None
        self._skeleton = [vlm.ids(piece) for piece in prompts.answer_skeleton(policy)]
        self._options = {flag: vlm.ids(text) for flag, text in ((True, TRUE), (False, FALSE))}

    def read_video(self, clip: Clip) -> Context:
        """Prefill policy, video and question on this model: only where S1 ran on another model."""
        if self._head is None:
            self._head = self.vlm.prefill_text(self.parts.head)
        videos = self.vlm.encode_videos([clip.frames], [clip.timestamps])
        return self.vlm.prefill_videos(self._head, videos, self.parts.tail).context(0)

    def deliberate(
        self, context: Context, captions: Sequence[Caption], scores: Mapping[str, float] | None
    ) -> Deliberated:
        """Continue a cache that ends with the question (Algorithm 2, lines 9-12).

        Whatever the model writes, the answer is well formed: the reasoning is cut before the first
        GUARDRAIL, and that line is forced.

        Args:
            context: is advanced to the answer's end.
            captions: one a frame.
            scores: S1's probability of each label.

        Raises:
            FloatingPointError: a probability that is no number.
        """
        request = prompts.deliberation_request(self.policy, captions, scores)
        opening = self.vlm.ids(request + self.parts.closing + _BEGIN)
        hidden = self.vlm.extend(context, opening, adapter=self.adapter)
        reasoning = self.vlm.decode(
            context, hidden, max_new_tokens=self.max_new_tokens, stop=_STOP, adapter=self.adapter
        )
        if not reasoning.endswith("\n"):
            self.vlm.extend(context, self.vlm.ids("\n"), adapter=self.adapter)
        flags, found, guardrail = self._answer(context)
        text = f"{_BEGIN}{reasoning.rstrip()}\n{guardrail}"
        response = prompts.parse_response(self.policy, text)
        return Deliberated(response.description, response.explanation, flags, found, text)

    def _answer(self, context: Context) -> tuple[dict[str, bool], dict[str, float], str]:
        """Force the skeleton; at each gap read the model's boolean and feed it back."""
        flags: dict[str, bool] = {}
        scores: dict[str, float] = {}
        for category, piece in zip(self.policy.categories, self._skeleton, strict=False):
            hidden = self.vlm.extend(context, piece, adapter=self.adapter)
            options = (TRUE, FALSE)
            p = float(self.vlm.choice_probability(hidden[:, -1], options, context.spent)[0])
            if math.isnan(p):
                raise FloatingPointError(
                    "the answer's probability is not a number: the reasoner's weights or their type "
                    "are at fault"
                )
            flags[category.id] = p > 0.5
            scores[category.id] = p
            self.vlm.extend(context, self._options[flags[category.id]], adapter=self.adapter)
        chosen = [name for name, flag in flags.items() if flag]
        return flags, scores, prompts.guardrail_answer(self.policy, chosen)
