"""S1, screening: a clip to class probabilities, a confidence, and how familiar the clip looks.

Knows the vision-language model, the probe (or the label answers, where there is no probe) and the
domain guard. Does not know tau, nor what happens to a clip of which it is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from safelens import prompts
from safelens.domain import DomainGuard
from safelens.policy import Policy
from safelens.probe import RollingAttentionProbe
from safelens.verdict import Evidence
from safelens.video import Clip
from safelens.vlm import Context, Prefilled, VisionLanguageModel
from safelens.vlm_inputs import ChatLayout

Layout = Literal["policy_first", "video_first"]
LAST_TOKENS = 100
"""How many of the question's last tokens the probe reads (paper, appendix M)."""


def layout_of(vlm: VisionLanguageModel, policy: Policy, layout: Layout) -> ChatLayout:
    """The prompt's parts: policy as system message, or after the video as in the paper."""
    question = prompts.question(policy)
    if layout == "policy_first":
        return vlm.layout(question, system=prompts.policy_prompt(policy))
    return vlm.layout(f"{prompts.policy_prompt(policy)}\n\n{question}")


class Reader(Protocol):
    """Turns what the model holds after the question into class probabilities."""

    def __call__(self, context: Context, states: torch.Tensor) -> torch.Tensor:
        """Probabilities (C,) from the question's states (T, D); the context is left as it was."""


class ProbeReader:
    """The probe on the hidden states of the question's last tokens (Algorithm 2, lines 2-4).

    Args:
        probe: trained on states of the same model, layout and question.
        temperature: divides the probe's logits; found by calibration.
    """

    def __init__(self, probe: RollingAttentionProbe, temperature: float = 1.0) -> None:
        self.probe = probe.eval()
        self.temperature = temperature

    def __call__(self, context: Context, states: torch.Tensor) -> torch.Tensor:
        """See :class:`Reader`."""
        with torch.inference_mode():
            logits = self.probe(states[None].to(self.probe.mean.dtype))
        return (logits[0].float() / self.temperature).softmax(-1).cpu()


class LabelReader:
    """Scores the label answers in one forward pass, for a model without a probe.

    Each category's answer ``GUARDRAIL: {"<name>":`` continues its own copy of the cache, all in one
    batch; its probability is that of `` true`` against `` false``. The model answers for each category
    alone, so with odds o_c = p_c / (1 - p_c) the class probabilities are those of "exactly one or
    none is violated": P(c) = o_c / (1 + sum o), P(safe) = 1 / (1 + sum o).
    """

    def __init__(self, vlm: VisionLanguageModel, policy: Policy, closing: str) -> None:
        self.vlm = vlm
        opening = prompts.screening_suffix() + closing
        rows = [
            vlm.ids(opening + prompts.category_opening(category)) for category in policy.categories
        ]
        self._ends = torch.tensor([len(row) - 1 for row in rows])
        self._ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def __call__(self, context: Context, states: torch.Tensor) -> torch.Tensor:
        """See :class:`Reader`."""
        copies = self.vlm.fork(context, len(self._ids))
        copies.spent = context.spent
        hidden = self.vlm.extend(copies, self._ids)
        last = hidden[torch.arange(len(self._ids)), self._ends]
        p = self.vlm.choice_probability(last, (prompts.TRUE, prompts.FALSE)).double().cpu()
        odds = p / (1 - p).clamp(min=1e-9)
        return (torch.cat([odds, torch.ones(1)]) / (1 + odds.sum())).float()


@dataclass
class Screened:
    """What S1 says of one clip.

    Attributes:
        scores: label (category id or "safe") to probability, summing to 1.
        label: the most probable.
        confidence: its probability.
        in_domain: share of clips of the training's kind that look at least as strange, or None.
        familiar: whether the domain guard accepts the clip; True without a guard.
        context: the cache up to the question's end, which S2 continues.
    """

    scores: dict[str, float]
    label: str
    confidence: float
    in_domain: float | None
    familiar: bool
    context: Context
    prefilled: Prefilled
    row: int


class Screener:
    """S1 for one policy; the policy's cache is made once, here.

    Args:
        vlm: the embedder.
        policy: gives prompt and classes.
        reader: a :class:`ProbeReader`, or None to score the label answers.
        guard: the domain guard, or None.
        layout: order of the prompt.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        policy: Policy,
        *,
        reader: Reader | None = None,
        guard: DomainGuard | None = None,
        layout: Layout = "policy_first",
    ) -> None:
        self.vlm = vlm
        self.policy = policy
        self.guard = guard
        self.parts = layout_of(vlm, policy, layout)
        self.head = vlm.prefill_text(self.parts.head)
        self.reader: Reader = reader or LabelReader(vlm, policy, self.parts.closing)

    def prefill(self, clips: Sequence[Clip]) -> Prefilled:
        """Run vision tower, video tokens and question of a batch of clips on the policy's cache."""
        videos = self.vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])
        return self.vlm.prefill_videos(self.head, videos, self.parts.tail)

    def screen(self, clips: Sequence[Clip]) -> list[Screened]:
        """Screen a batch of clips (Algorithm 2, lines 2-5)."""
        prefilled = self.prefill(clips)
        return [self._read(prefilled, row) for row in range(len(clips))]

    def _read(self, prefilled: Prefilled, row: int) -> Screened:
        context = prefilled.context(row)
        states = prefilled.tail_states(row, LAST_TOKENS)
        p = self.reader(context, states)
        if not bool(torch.isfinite(p).all()):
            raise FloatingPointError("the model's scores are not finite; its weights or dtype are at fault")
        scores = dict(zip(self.policy.labels, p.tolist(), strict=True))
        label = max(scores, key=lambda name: scores[name])
        in_domain, familiar = None, True
        if self.guard is not None:
            features = domain_features(prefilled, row)
            in_domain = float(self.guard.in_domain(features))
            familiar = bool(self.guard.accepts(features))
        return Screened(scores, label, scores[label], in_domain, familiar, context, prefilled, row)

    def evidence(self, screened: Screened, clip: Clip, category: str) -> list[Evidence]:
        """When in the video: each temporal step asked alone, on the cache that is already there.

        The question is run again on [policy | one step's block] for all steps in one batch; nothing
        of the video is encoded or prefilled anew. Steps that score at least half of the best step are
        joined into stretches.

        Args:
            screened: what :meth:`screen` gave for the clip.
            clip: gives the timestamps.
            category: a category id.
        """
        moments = screened.prefilled.moments(screened.row)
        together = Context.stack(moments)
        together.spent = screened.context.spent
        hidden = self.vlm.extend(together, self.vlm.ids(self.parts.tail))
        column = self.policy.labels.index(category)
        scores = [
            float(self.reader(together.select(k, [(0, together.length)]), states)[column])
            for k, states in enumerate(hidden[:, -LAST_TOKENS:])
        ]
        return stretches(scores, clip.timestamps, category)


def stretches(scores: Sequence[float], timestamps: np.ndarray, category: str) -> list[Evidence]:
    """Join neighbouring steps that score at least half of the best into stretches of time.

    Args:
        scores: one a temporal step, in order.
        timestamps: of the frames, (T,) seconds; steps share them evenly.
        category: a category id.
    """
    per = -(-len(timestamps) // len(scores))
    edges = [float(t) for t in timestamps[::per]] + [float(timestamps[-1])]
    bound = max(scores) / 2
    found: list[Evidence] = []
    for k, score in enumerate(scores):
        if score < bound:
            continue
        start, end = edges[k], edges[k + 1]
        if found and found[-1].end_s == start:
            start, score = found[-1].start_s, max(score, found.pop().score)
        found.append(Evidence(start_s=start, end_s=end, category=category, score=min(1.0, score)))
    return found


def domain_features(prefilled: Prefilled, row: int) -> np.ndarray:
    """What the domain guard looks at: S1's states, pooled.

    Mean over the question's last tokens, mean and standard deviation over the video's tokens; shape
    (3 D,), float64.
    """
    question = prefilled.tail_states(row, LAST_TOKENS).double()
    video = prefilled.video_states(row).double()
    return torch.cat([question.mean(0), video.mean(0), video.std(0)]).cpu().numpy()


