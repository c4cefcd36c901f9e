"""Trains the embedder: a vision-language model whose answer, and hidden states, tell the categories.

Knows what is asked of the model at each turn. Knows nothing of where clips come from.

A sequence is the paper's (policy, video, question, GUARDRAIL answer). Three things are added for models
that start from random weights: turns that ask for the caption of single frames, dense targets without
which a small model does not begin to see; texts without a video, from which it learns cheaply what S2
does with text, such as repeating what a caption quotes; and an auxiliary head on the mean hidden state
of the question, the states that the probe will read. The head is thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from safelens import prompts
from safelens.assembly import Encoding
from safelens.policy import SAFE, Policy
from safelens.prompts import FALSE, TRUE
from safelens.reading import Layout, layout_of
from safelens.safewatch.blocks import TrainedBlocks
from safelens.safewatch.parallel import ParallelPrompt, ParallelText
from safelens.train.loop import LoopConfig, fit
from safelens.train.sequences import Example, Scored, answer_loss, teacher_forced
from safelens.verdict import Caption
from safelens.vlm import EncodedVideo, VisionLanguageModel

SEQUENTIAL = Encoding()
DESCRIBE = "Describe the video at {:.1f} s."
DESCRIBE_ALL = "Describe the video."

Task = Literal["screen", "see", "describe", "deliberate", "read"]
"""What a batch trains: `screen`, the GUARDRAIL answer under the policy; `see` and `describe`, captions of
two frames a clip or its description, without the policy: short and cheap; `deliberate`, the reasoned
answer on half of the clips; `read`, answers to texts without a video."""


@dataclass(frozen=True)
class LabelledClip:
    """A clip with all that is known of it.

    Attributes:
        video: the clip as model input.
        labels: violated category ids; empty if safe.
        captions: of single frames; none where there are none to learn from.
        description: one sentence about the clip.
        explanation: one sentence about its safety.
    """

    video: EncodedVideo
    labels: tuple[str, ...]
    captions: tuple[Caption, ...]
    description: str
    explanation: str


class Turns:
    """Token ids of all that is asked and answered under one policy.

    Args:
        vlm: the model.
        policy: gives prompt and answers.
        layout: order of the prompt.
        encoding: how policy and video are read.

    Attributes:
        policy: its categories in the order in which requests and answers list them.
        layout: the chat, cut where the video stands.
        question: what comes next behind video and policy.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        policy: Policy,
        layout: Layout = "policy_first",
        encoding: Encoding = SEQUENTIAL,
    ) -> None:
        self.vlm = vlm
        self.policy = policy
        self._order: Layout = layout
        self._encoding = encoding
        if encoding.policy == "parallel":
            text = ParallelText.of(vlm, policy, layout)
            self.policy, self.layout = text.policy, text.parts
            self.question = vlm.ids(text.question)
        else:
            self.layout = layout_of(vlm, policy, layout)
            self.question = vlm.ids(self.layout.tail)
        self.closing = vlm.ids(prompts.screening_suffix() + self.layout.closing)
        self.head_without_policy = vlm.ids(vlm.layout("").head)
        self._end = vlm.ids(vlm.tokenizer.eos_token)

    @cached_property
    def head(self) -> torch.Tensor:
        """What comes before the video, where the policy is read as one text.

        Raises:
            ValueError: its categories are read alone; see :meth:`opening`.
        """
        if self._encoding.policy == "parallel":
            raise ValueError("categories that are read alone are no one text; use opening()")
        return self.vlm.ids(self.layout.head)

    def opening(self, keep: float | None = None) -> torch.Tensor | ParallelPrompt:
        """The policy, as `teacher_forced` takes it; categories that are read alone are read now, with gradient.

        Args:
            keep: share of the videos' tokens that stay; only where categories are read alone.

        Raises:
            EncodingError: the policy is read as one text, and a share is given.
            ValueError: the layer at which relevance is measured does not attend.
        """
        if self._encoding.policy == "sequential":
            replace(self._encoding, keep=keep)  # refuses a share
            return self.head
        blocks = TrainedBlocks(self.vlm, layer=self._encoding.layer)
        return ParallelPrompt(blocks, self.policy, layout=self._order, keep=keep)

    def screening(
        self, labels: Sequence[str], captions: Sequence[Caption] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The question, behind it captions if there are any, and its GUARDRAIL answer."""
        told = self.vlm.ids(prompts.frame_captions(captions)) if captions else self.question[:0]
        answer = self.vlm.ids(prompts.guardrail_answer(self.policy, labels))
        return torch.cat([self.question, told, self.closing]), torch.cat([answer, self._end])

    def caption(self, caption: Caption, *, first: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """A turn that asks what is seen at one moment; ``first`` if it directly follows the video."""
        chat = self.vlm.layout(DESCRIBE.format(caption.time_s))
        turn = self.vlm.layout("").head.removeprefix(self.vlm.tokenizer.bos_token or "")
        opening = "" if first else "\n" + turn
        prompt = self.vlm.ids(opening + chat.tail + chat.closing)
        return prompt, torch.cat([self.vlm.ids(caption.text), self._end])

    def description(self, clip: LabelledClip) -> tuple[torch.Tensor, torch.Tensor]:
        """A turn right after the video that asks what is seen in all of it."""
        chat = self.vlm.layout(DESCRIBE_ALL)
        prompt = self.vlm.ids(chat.tail + chat.closing)
        return prompt, torch.cat([self.vlm.ids(clip.description), self._end])

    def deliberation(
        self,
        clip: LabelledClip,
        captions: Sequence[Caption],
        scores: dict[str, float],
        *,
        with_question: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions and scores, then DESCRIPTION, EXPLANATION and GUARDRAIL."""
        request = prompts.deliberation_request(self.policy, captions, scores)
        prompt = self.vlm.ids(request + self.layout.closing)
        if with_question:
            prompt = torch.cat([self.question, prompt])
        answer = prompts.deliberation_answer(
            self.policy, clip.description, clip.explanation, clip.labels
        )
        return prompt, torch.cat([self.vlm.ids(answer), self._end])


def true_and_false(vlm: VisionLanguageModel) -> torch.Tensor:
    """First token ids of an answer's booleans, shape (2,)."""
    return torch.tensor([int(vlm.ids(flag)[0]) for flag in (TRUE, FALSE)], device=vlm.device)


class _WithHead(nn.Module):
    def __init__(self, model: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.model = model
        self.class_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))


def class_target(policy: Policy, labels: Sequence[str]) -> torch.Tensor:
    """A distribution over the probe's classes, shape (C,): even over the labels, or all on safe."""
    target = torch.zeros(len(policy.labels))
    for label in labels or (SAFE,):
        target[policy.labels.index(label)] = 1 / max(1, len(labels))
    return target


def train_embedder(
    vlm: VisionLanguageModel,
    policy: Policy,
    batch_at: Callable[[int], list[LabelledClip]],
    out: Path,
    config: LoopConfig,
    *,
    task_of: Callable[[int], Task] = lambda number: "screen",
    texts_at: Callable[[int], list[tuple[str, str]]] | None = None,
    auxiliary: float = 0.5,
    boolean_weight: float = 0.0,
    read_captions: bool = False,
    layout: Layout = "policy_first",
    encoding: Encoding = SEQUENTIAL,
    random_keep: bool = False,
) -> None:
    """Train the weights of ``vlm`` that require a gradient, in place.

    Args:
        vlm: the model.
        policy: gives the prompt and the classes.
        batch_at: number to batch; the same batch for the same number.
        out: directory for checkpoint and log.
        config: see :class:`LoopConfig`.
        task_of: number of a batch to what it trains.
        texts_at: number of a batch to prompts and answers, for batches that train `read`.
        auxiliary: weight of the auxiliary head's loss; 0 leaves the head out.
        boolean_weight: in batches that train `screen`, of an added loss on the answer's booleans alone: a
            few tokens of an answer that is otherwise always the same.
        read_captions: captions stand in the prompt of `screen`, as they do in S2's, in place of a turn
            that asks for one.
        layout: order of the prompt.
        encoding: how policy and video are read in batches that train `screen`. A thinned video is asked for no
            caption: what a frame showed may be gone.
        random_keep: each of those batches keeps a share of its own, see :func:`share_at`, not the encoding's.
    """
    turns = Turns(vlm, policy, layout, encoding)
    flags = true_and_false(vlm)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        module = _WithHead(vlm.model, vlm.hidden_size, len(policy.labels))
    module.to(vlm.device)
    module.class_head.requires_grad_(auxiliary > 0)

    def with_classes(
        found: dict[str, torch.Tensor],
        clips: list[LabelledClip],
        examples: list[Example],
        scored: Scored,
        cut: int,
    ) -> dict[str, torch.Tensor]:
        if not auxiliary:
            return found
        named = _classes(module, policy, clips, examples, scored, cut=cut)
        return found | {"loss": found["loss"] + auxiliary * named["classes"]} | named

    def seeing(step: int, clips: list[LabelledClip]) -> dict[str, torch.Tensor]:
        examples = []
        for clip, (one, two) in zip(clips, _two_frames(clips, step), strict=True):
            first, second = clip.captions[one], clip.captions[two]
            pair = (turns.caption(first, first=True), turns.caption(second, first=False))
            examples.append(Example(clip.video, pair))
        scored = teacher_forced(vlm, turns.head_without_policy, examples)
        captions = (scored.losses[0] + scored.losses[1]) / 2
        return with_classes({"loss": captions, "captions": captions}, clips, examples, scored, 0)

    def describing(clips: list[LabelledClip]) -> dict[str, torch.Tensor]:
        examples = [Example(clip.video, (turns.description(clip),)) for clip in clips]
        loss = teacher_forced(vlm, turns.head_without_policy, examples).losses[0]
        return {"loss": loss, "description": loss}

    def screening(step: int, clips: list[LabelledClip]) -> dict[str, torch.Tensor]:
        keep = encoding.keep
        if random_keep and keep is not None:
            keep = share_at(step, keep, config.seed)
        answers = [turns.screening(c.labels, c.captions if read_captions else ()) for c in clips]
        examples = [Example(c.video, (a,)) for c, a in zip(clips, answers, strict=True)]
        captioned = all(clip.captions for clip in clips) and not read_captions and keep is None
        if captioned:
            asked = [
                c.captions[one] for c, (one, _) in zip(clips, _two_frames(clips, step), strict=True)
            ]
            examples = [
                Example(e.video, (*e.turns, turns.caption(caption, first=False)))
                for e, caption in zip(examples, asked, strict=True)
            ]
        scored = teacher_forced(vlm, turns.opening(keep), examples)
        found = {"loss": scored.losses[0], "guardrail": scored.losses[0]}
        if boolean_weight:
            spans = [row[0] for row in scored.answers]
            booleans = answer_loss(vlm, scored.hidden, scored.ids, spans, only=flags)
            found |= {"loss": found["loss"] + boolean_weight * booleans, "booleans": booleans}
        if captioned:
            found |= {"loss": found["loss"] + 0.5 * scored.losses[1], "captions": scored.losses[1]}
        cut = 0 if read_captions else len(turns.closing)
        return with_classes(found, clips, examples, scored, cut)

    def deliberating(step: int, clips: list[LabelledClip]) -> dict[str, torch.Tensor]:
        examples = [
            Example(c.video, (_deliberation(turns, c, step, i),)) for i, c in enumerate(clips)
        ]
        loss = teacher_forced(vlm, turns.head_without_policy, examples).losses[0]
        return {"loss": loss, "deliberation": loss}

    def reading(step: int) -> dict[str, torch.Tensor]:
        assert texts_at is not None
        loss = _text_loss(turns, texts_at(step))
        return {"loss": loss, "reading": loss}

    def loss_of_batch(number: int) -> dict[str, torch.Tensor]:
        task = task_of(number)
        if task == "read":
            return reading(number)
        clips = batch_at(number)
        if task == "see":
            return seeing(number, clips)
        if task == "describe":
            return describing(clips)
        if task == "deliberate":
            return deliberating(number, clips[: max(1, len(clips) // 2)])
        return screening(number, clips)

    fit(module, loss_of_batch, config, out, title="embedder")


def share_at(number: int, least: float, seed: int) -> float:
    """A share of a video's tokens for a batch, by its number: log-uniform from ``least`` to 1.

    A model that is to answer from any share has seen as many orders of few as of many.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return float(least ** torch.rand(1, generator=generator, dtype=torch.float64))


def _classes(
    module: _WithHead,
    policy: Policy,
    clips: list[LabelledClip],
    examples: list[Example],
    scored: Scored,
    *,
    cut: int,
) -> dict[str, torch.Tensor]:
    """The auxiliary loss on the mean state of the first prompt, less its last ``cut`` tokens."""
    pooled = torch.stack(
        [
            scored.hidden[i, spans[0][0] - len(example.turns[0][0]) : spans[0][0] - cut].mean(0)
            for i, (spans, example) in enumerate(zip(scored.answers, examples, strict=True))
        ]
    )
    target = torch.stack([class_target(policy, c.labels) for c in clips]).to(pooled.device)
    logits = module.class_head(pooled)
    right = target.gather(1, logits.argmax(1, keepdim=True)) > 0
    return {"classes": F.cross_entropy(logits, target), "accuracy": right.float().mean()}


def _text_loss(turns: Turns, texts: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Mean cross-entropy of answers to prompts without policy or video; an answer need not end there."""
    vlm = turns.vlm
    closing = turns.layout.closing
    pairs = [
        (torch.cat([turns.head_without_policy, vlm.ids(prompt + closing)]), vlm.ids(answer))
        for prompt, answer in texts
    ]
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.cat(pair) for pair in pairs],
        batch_first=True,
        padding_value=vlm.tokenizer.pad_token_id,
    ).to(vlm.device)
    hidden = vlm.run(vlm.text_inputs(ids, 0))
    spans = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in pairs]
    return answer_loss(vlm, hidden, ids, spans)


def _two_frames(clips: Sequence[LabelledClip], step: int) -> list[tuple[int, int]]:
    generator = torch.Generator().manual_seed(step)
    picked = [torch.randperm(len(c.captions), generator=generator).tolist() for c in clips]
    return [(rows[0], rows[-1]) for rows in picked]


def _deliberation(
    turns: Turns, clip: LabelledClip, step: int, row: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A reasoned answer over true captions and made-up scores that lean towards the truth."""
    generator = torch.Generator().manual_seed(step * 1000 + row)
    labels = turns.policy.labels
    noise = torch.randn(len(labels), generator=generator) * 1.5
    lean = 3.0 * torch.rand(1, generator=generator)
    scores = (noise + lean * class_target(turns.policy, clip.labels)).softmax(0)
    named = dict(zip(labels, scores.tolist(), strict=True))
    return turns.deliberation(clip, clip.captions, named, with_question=True)
