"""S2, deliberation: captions, scores and the video to a reasoned answer that is always well formed.

Knows the prompt of appendix L and how to decode under it. Does not know when it is called.

The reasoning is the model's own, within a budget. The GUARDRAIL line is forced: its text comes from
the policy, only the booleans are the model's, and their probabilities are the category scores.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safelens import prompts
from safelens.policy import Policy
from safelens.prompts import FALSE, TRUE
from safelens.reading import Layout, Prompt, SequentialPrompt
from safelens.verdict import Caption
from safelens.video import Clip
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context
from safelens.vlm_cost import Spent
from safelens.vlm_decoding import DRAFT, Decoding, Phrases, Program, Step, Written, alone, greedy

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
        layout: order of the prompt, where none is given; of use where the model is not S1's.
        prompt: how the policy is put to the model, S1's where it is S1's model; as one text by default.

    Attributes:
        guess: whether passes also run tokens that are guessed; the answer is the same.
    """

    guess = True

    def __init__(
        self,
        vlm: VisionLanguageModel,
        policy: Policy,
        *,
        adapter: str | None = ADAPTER,
        max_new_tokens: int = 256,
        layout: Layout = "policy_first",
        prompt: Prompt | None = None,
    ) -> None:
        self.vlm = vlm
        self.prompt = prompt or SequentialPrompt(vlm, policy, layout)
        self.policy = policy = self.prompt.policy
        self.adapter = adapter
        self.max_new_tokens = max_new_tokens
        self.parts = self.prompt.parts
        self._skeleton = [vlm.ids(piece).tolist() for piece in prompts.answer_skeleton(policy)]
        self._options = {
            flag: vlm.ids(text).tolist() for flag, text in ((True, TRUE), (False, FALSE))
        }
        self._answers = Phrases()
        self._newline = vlm.ids("\n").tolist()

    def read_video(self, clip: Clip) -> Context:
        """Prefill policy, video and question on this model: only where S1 ran on another model."""
        videos = self.vlm.encode_videos([clip.frames], [clip.timestamps])
        return self.prompt.prefill(videos).context(0)

    def decoding(self) -> Decoding[Any, Deliberated]:
        """A batch in which the programs of several videos can run."""
        return Decoding(self.vlm, adapter=self.adapter)

    def deliberate(
        self, context: Context, captions: Sequence[Caption], scores: Mapping[str, float] | None
    ) -> Deliberated:
        """Continue a cache that ends with the question, one video alone.

        Args:
            context: is used up, and charged what it costs.
            captions: one a frame.
            scores: S1's probability of each label.

        Raises:
            FloatingPointError: a probability that is no number.
        """
        return alone(
            self.vlm,
            context,
            self.program(captions, scores, context.spent),
            adapter=self.adapter,
        )

    def program(
        self, captions: Sequence[Caption], scores: Mapping[str, float] | None, spent: Spent
    ) -> Program[Deliberated]:
        """What :class:`Decoding` runs behind a cache that ends with the question (Algorithm 2, lines 9-12).

        Whatever the model writes, the answer is well formed: the reasoning is cut before the first
        GUARDRAIL, and that line is forced. Raises FloatingPointError for a probability that is no number.

        Args:
            captions: one a frame.
            scores: S1's probability of each label.
            spent: of the cache; is charged the tokens written.
        """
        request = prompts.deliberation_request(self.policy, captions, scores)
        opening = self.vlm.ids(request + self.parts.closing + _BEGIN).tolist()
        logits = yield Step(opening, [len(opening) - 1])
        reasoning = yield from greedy(
            self.vlm,
            spent,
            logits,
            opening,
            max_new_tokens=self.max_new_tokens,
            stop=_STOP,
            answers=self._answers,
            draft=DRAFT if self.guess else 0,
        )
        flags, found = yield from self._answer(reasoning, scores)
        guardrail = prompts.guardrail_answer(self.policy, [n for n, flag in flags.items() if flag])
        text = f"{_BEGIN}{reasoning.text.rstrip()}\n{guardrail}"
        response = prompts.parse_response(self.policy, text)
        return Deliberated(response.description, response.explanation, flags, found, text)

    def _answer(
        self, reasoning: Written, scores: Mapping[str, float] | None
    ) -> Generator[Step, torch.Tensor, tuple[dict[str, bool], dict[str, float]]]:
        """Force the skeleton; at each gap read the model's boolean.

        All of it runs in one pass, with booleans as S1 would have them. At the first that the model has
        otherwise, the rest is taken back and run again with the model's.
        """
        names = [category.id for category in self.policy.categories]
        likely = None if scores is None else max(scores, key=lambda name: scores[name])
        flags = {name: name == likely for name in names}
        found: dict[str, float] = {}
        own, drop = list(reasoning.missing), reasoning.drop
        before = [] if reasoning.text.endswith("\n") else self._newline
        while len(found) < len(names):
            ids, read = [*own, *before], []
            left = range(len(found), len(names))
            for i in left:
                ids += self._skeleton[i]
                read.append(len(ids) - 1)
                if i < len(names) - 1:
                    ids += self._options[flags[names[i]]]
            logits = yield Step(ids, read, drop=drop, own=len(own))
            chosen = self.vlm.choice(logits, (TRUE, FALSE)).tolist()
            for i, place, p in zip(left, read, chosen, strict=True):
                if math.isnan(p):
                    raise FloatingPointError(
                        "the answer's probability is not a number: the reasoner's weights or their "
                        "type are at fault"
                    )
                found[names[i]] = p
                if (p > 0.5) != flags[names[i]]:
                    flags[names[i]] = p > 0.5
                    own, before, drop = [], self._options[p > 0.5], len(ids) - place - 1
                    break
        return flags, found
