"""S1, screening: a clip to class probabilities, a confidence, and how familiar the clip looks.

Knows the vision-language model, the probe (or the label answers, where there is no probe) and the
domain guard. Does not know tau, nor what happens to a clip of which it is unsure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from safelens import prompts
from safelens.branches import Branches, Span
from safelens.domain import DomainGuard
from safelens.domain_features import domain_features
from safelens.policy import Policy
from safelens.probe import RollingAttentionProbe
from safelens.reading import Layout, Prompt, SequentialPrompt
from safelens.safewatch.regions import regions_of
from safelens.verdict import Evidence, Region
from safelens.video import Clip
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context, Prefilled
from safelens.vlm_cost import Spent
from safelens.vlm_inputs import ChatLayout

LAST_TOKENS = 100
"""How many of the question's last tokens the probe reads (paper, appendix M)."""


class Reader(Protocol):
    """Turns what the model holds after the question into class probabilities."""

    def __call__(
        self, states: torch.Tensor, context: Callable[[], Context], spent: Spent
    ) -> torch.Tensor:
        """Probabilities (C,), summing to 1.

        Args:
            states: of the question's last tokens, (T, D).
            context: copies the cache that ends with the question, for readers that need it.
            spent: is charged what reading costs.
        """


class ProbeReader:
    """The probe on the hidden states of the question's last tokens (Algorithm 2, lines 2-4).

    Args:
        probe: trained on states of the same model, layout and question.
        temperature: divides the probe's logits; found by calibration.
        labels: the probe's classes in the order in which they are wanted; the probe's own by default.

    Raises:
        ValueError: a label is no class of the probe.
    """

    def __init__(
        self,
        probe: RollingAttentionProbe,
        temperature: float = 1.0,
        *,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.probe = probe.eval()
        self.temperature = temperature
        own = list(probe.config.labels)
        self._columns = [own.index(label) for label in labels or own]

    @torch.inference_mode()
    def __call__(
        self, states: torch.Tensor, context: Callable[[], Context], spent: Spent
    ) -> torch.Tensor:
        """See :class:`Reader`."""
        spent.flops += self.probe.flops(len(states))
        logits = self.probe(states[None].to(self.probe.mean))[0]
        return (logits.float() / self.temperature).softmax(-1).cpu()[self._columns]


class LabelReader:
    """Scores the label answers in one forward pass, for a model without a probe.

    Each category's answer ``GUARDRAIL: {"<name>":`` continues what the model holds, and none sees another; its
    probability is that of `` true`` against `` false``. The model answers for each category
    alone, so with odds o_c = p_c / (1 - p_c) the class probabilities are those of "exactly one or
    none is violated": P(c) = o_c / (1 + sum o), P(safe) = 1 / (1 + sum o).

    Where categories are read alone, a category's answer sees no other category either: it need not be found by its
    name, and what else stands in the policy reaches it only through what video and question made of it.

    Args:
        vlm: the model.
        prompt: gives the answers, and says where each category lies.
        rows: categories in one batch, where each needs a copy of the cache: a convolution would go on from one
            answer into the next.
    """

    def __init__(
        self, vlm: VisionLanguageModel, policy: Policy, prompt: Prompt, *, rows: int = 8
    ) -> None:
        self.vlm, self._prompt = vlm, prompt
        opening = prompts.screening_suffix() + prompt.parts.closing
        by_name = policy.by_name().categories
        self._answers = [vlm.ids(opening + prompts.category_opening(c)) for c in by_name]
        # by name, so that not even the last bits tell the policy's order
        self._columns = [by_name.index(category) for category in policy.categories]
        self._branches = Branches.of(self._answers)
        self._rows = rows

    @torch.inference_mode()
    def __call__(
        self, states: torch.Tensor, context: Callable[[], Context], spent: Spent
    ) -> torch.Tensor:
        """See :class:`Reader`."""
        question = context()
        question.spent = spent
        own = self._prompt.spans(question.length)
        if not self.vlm.family.reach:
            last = self.vlm.extend_branches(question, self._branches, own)
        else:
            last = self._cut(question, own) if own else self._copied(question)
        self.vlm.charge(spent, 0, 0, read=len(last))
        p = self.vlm.choice(self.vlm.logits(last), (prompts.TRUE, prompts.FALSE))
        p = p.double().cpu()[self._columns]
        odds = p / (1 - p).clamp(min=1e-9)
        return (torch.cat([odds, odds.new_ones(1)]) / (1 + odds.sum())).float()

    def _copied(self, question: Context) -> torch.Tensor:
        found = []
        for start in range(0, len(self._answers), self._rows):
            part = self._answers[start : start + self._rows]
            copies = question.fork(len(part))
            copies.spent = question.spent
            hidden = self.vlm.extend(copies, pad_sequence(part, batch_first=True))
            ends = torch.tensor([len(answer) - 1 for answer in part])
            found.append(hidden[torch.arange(len(part)), ends])
        return torch.cat(found)

    def _cut(self, question: Context, own: Sequence[Span]) -> torch.Tensor:
        """Copies without the other categories; of unequal length, so one after the other."""
        branches, found = self._branches, []
        self.vlm.extend(question, branches.stem)
        seen = branches.past_seen(question.length, own)[branches.ends]
        for part, places in zip(branches.parts, seen, strict=True):
            alone = question.keep(places.nonzero()[:, 0])
            found.append(self.vlm.extend(alone, part)[:, -1])
        return torch.cat(found)


@dataclass(frozen=True)
class Finding:
    """What S1 says of one clip, in numbers alone, so that another process can go on from there.

    Attributes:
        scores: label (category id or "safe") to probability, summing to 1.
        label: the most probable.
        confidence: its probability.
        in_domain: see :class:`Screened`.
        familiar: see :class:`Screened`.
        spent: what it cost.
    """

    scores: dict[str, float]
    label: str
    confidence: float
    in_domain: float | None
    familiar: bool
    spent: Spent


@dataclass
class Screened:
    """What S1 says of one clip.

    Attributes:
        scores: label (category id or "safe") to probability, summing to 1.
        label: the most probable.
        confidence: its probability.
        in_domain: share of clips of the training's kind that look at least as strange, or None.
        familiar: whether the domain guard accepts the clip; True without a guard.
        prefilled: what the model holds of the whole batch.
        row: the clip's place in it.
        steps: class probabilities of each temporal step, once :meth:`Screener.evidence` was asked.
    """

    scores: dict[str, float]
    label: str
    confidence: float
    in_domain: float | None
    familiar: bool
    prefilled: Prefilled
    row: int
    steps: list[list[float]] | None = None

    @property
    def context(self) -> Context:
        """A copy of the cache up to the question's end, for S2 to continue."""
        return self.prefilled.context(self.row)

    def apart(self) -> Screened:
        """The same without the rest of the batch, which can then be forgotten."""
        return replace(self, prefilled=self.prefilled.alone(self.row), row=0)

    @property
    def spent(self) -> Spent:
        """What the clip has cost so far; S2 on the same model adds to it."""
        return self.prefilled.spent[self.row]

    @property
    def finding(self) -> Finding:
        """The same without what the model holds."""
        return Finding(
            self.scores, self.label, self.confidence, self.in_domain, self.familiar, self.spent
        )


class Screener:
    """S1 for one policy; the policy's cache is made once, here.

    Args:
        vlm: the embedder.
        policy: gives prompt and classes.
        reader: a :class:`ProbeReader`, or None to score the label answers.
        guard: the domain guard, or None.
        layout: order of the prompt, where none is given.
        prompt: how the policy is put to the model; as one text by default.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        policy: Policy,
        *,
        reader: Reader | None = None,
        guard: DomainGuard | None = None,
        layout: Layout = "policy_first",
        prompt: Prompt | None = None,
    ) -> None:
        self.vlm = vlm
        self.policy = policy
        self.guard = guard
        self.prompt = prompt or SequentialPrompt(vlm, policy, layout)
        self.head = self.prompt.head
        self.reader: Reader = reader or LabelReader(vlm, policy, self.prompt)

    @property
    def parts(self) -> ChatLayout:
        """The chat, cut where the video stands."""
        return self.prompt.parts

    def prefill(self, clips: Sequence[Clip]) -> Prefilled:
        """Run vision tower, video tokens and question of a batch of clips on the policy's cache."""
        videos = self.vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])
        return self.prompt.prefill(videos)

    def screen(self, clips: Sequence[Clip]) -> list[Screened]:
        """Screen a batch of clips (Algorithm 2, lines 2-5).

        Raises:
            FloatingPointError: scores that are no numbers.
        """
        prefilled = self.prefill(clips)
        return [self._read(prefilled, row) for row in range(len(clips))]

    def take_up(self, clips: Sequence[Clip], findings: Sequence[Finding]) -> list[Screened]:
        """Go on from what S1 found in another process: only what the model holds is made anew.

        Clips are charged for both readings.

        Args:
            clips: read again.
            findings: what :meth:`screen` gave for each.
        """
        prefilled = self.prefill(clips)
        for meter, finding in zip(prefilled.spent, findings, strict=True):
            meter.prompt += finding.spent.prompt
            meter.generated += finding.spent.generated
            meter.flops += finding.spent.flops
        return [
            Screened(f.scores, f.label, f.confidence, f.in_domain, f.familiar, prefilled, row)
            for row, f in enumerate(findings)
        ]

    def _read(self, prefilled: Prefilled, row: int) -> Screened:
        states, spent = prefilled.tail_states(row, LAST_TOKENS), prefilled.spent[row]
        p = self.reader(states, lambda: prefilled.context(row), spent)
        if not bool(torch.isfinite(p).all()):
            raise FloatingPointError(
                "the scores of the screen are not finite: its weights or their type are at fault"
            )
        scores = dict(zip(self.policy.labels, p.tolist(), strict=True))
        label = max(scores, key=lambda name: scores[name])
        in_domain, familiar = None, True
        if self.guard is not None:
            features = domain_features(prefilled, row, self.vlm.patch_shape)
            in_domain = float(self.guard.in_domain(features))
            familiar = bool(self.guard.accepts(features))
        return Screened(scores, label, scores[label], in_domain, familiar, prefilled, row)

    def evidence(self, screened: Screened, clip: Clip, category: str) -> list[Evidence]:
        """When in the video: each temporal step asked alone, on the cache that is already there.

        Steps that score at least half of the best step are joined into stretches.

        Args:
            screened: what :meth:`screen` gave for the clip.
            clip: gives the timestamps.
            category: a category id.
        """
        if screened.steps is None:
            screened.steps = self._steps(screened)
        column = self.policy.labels.index(category)
        return stretches([row[column] for row in screened.steps], clip.timestamps, category)

    def regions(self, screened: Screened, clip: Clip, category: str) -> list[Region]:
        """Where in the frames a category looked most; empty where its relevance was not measured.

        Args:
            screened: what :meth:`screen` gave for the clip.
            clip: gives the timestamps.
            category: a category id.
        """
        prefilled, merge = screened.prefilled, self.vlm.family.merge
        if prefilled.relevance is None:
            return []
        steps, height, width = prefilled.grid(screened.row)
        row = [c.id for c in self.prompt.policy.categories].index(category)
        found = prefilled.relevance[screened.row][row]
        maps = found.view(steps, height // merge, width // merge).cpu().numpy()
        return regions_of(maps, step_edges(clip.timestamps, steps), category)

    def _steps(self, screened: Screened) -> list[list[float]]:
        """Class probabilities of each temporal step, shape (steps, C).

        The question is run again on [policy | one step's block] for all steps in one batch; nothing
        of the video is encoded or prefilled anew.
        """
        return [
            self.reader(asked.states[-LAST_TOKENS:], asked.context, screened.spent).tolist()
            for asked in self.prompt.ask(screened.prefilled.moments(screened.row))
        ]


def step_edges(timestamps: np.ndarray, steps: int) -> list[float]:
    """Where each of some temporal steps begins, and where the last one ends, in seconds.

    Args:
        timestamps: of the frames, (T,) seconds; steps share them evenly.
        steps: how many.
    """
    per = -(-len(timestamps) // steps)
    return [float(t) for t in timestamps[::per]] + [float(timestamps[-1])]


def stretches(scores: Sequence[float], timestamps: np.ndarray, category: str) -> list[Evidence]:
    """Join neighbouring steps that score at least half of the best into stretches of time.

    Args:
        scores: one a temporal step, in order.
        timestamps: of the frames, (T,) seconds; steps share them evenly.
        category: a category id.
    """
    edges = step_edges(timestamps, len(scores))
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
