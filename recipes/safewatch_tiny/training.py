"""Stages: multi-task guardrail training, and adaptive-pruning training (SafeWatch, section 4.2).

Knows what each batch trains and under which policy. Knows nothing of preferences.

A batch is of one task. Those under a policy have several groups of clips, each under a policy of its own:
what is to be learned is reading, and of one policy there is nothing to read that could not be known.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from recipes.safewatch_tiny.clips import Clips, Shown, asked, some_captions
from recipes.safewatch_tiny.policies import Ruled, default_policy, sampled
from recipes.tiny.parts import load_vlm, save_vlm, use_all_cores
from recipes.tiny.reading import repeated
from safelens import prompts
from safelens.assembly import Encoding
from safelens.train.embedder import LabelledClip, Turns, share_at, true_and_false
from safelens.train.loop import LoopConfig, fit
from safelens.train.sequences import Example, answer_loss, head_context, teacher_forced
from safelens.vlm import VisionLanguageModel

Task = Literal["guardrail", "reason", "told", "captions", "describe", "questions", "repeat"]
"""`guardrail`: the booleans alone; `reason`: description, explanation and booleans, over captions and scores;
`told`: the booleans for captions in place of a video. These are under a policy; the others without one."""
GUARDRAIL: tuple[Task, ...] = (
    *("guardrail", "captions", "told", "questions"),
    *("reason", "told", "guardrail", "describe"),
    *("guardrail", "questions", "told", "repeat"),
)
"""Tasks of the first stage, batch after batch."""
PRUNING: tuple[Task, ...] = (
    *("guardrail", "told", "guardrail", "questions"),
    *("guardrail", "reason", "guardrail", "told"),
)
"""Of the second."""


class Batches:
    """Losses of batches by number.

    Args:
        vlm: is trained.
        needs: folders of the stages, "train" among them.
        settings: "batch" clips, in "groups" under a policy each; "seed"; "boolean_weight" of an added loss on
            an answer's booleans; "own" is the share of groups under the default policy; "least" is the least
            share of a video's tokens that stays, drawn anew for each batch, or None: all stay.
        encoding: how policies are read.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        needs: dict[str, Path],
        settings: dict[str, Any],
        encoding: Encoding,
    ) -> None:
        self.vlm, self.settings, self.encoding = vlm, settings, encoding
        self.clips = Clips(needs, vlm)
        self._default = default_policy()
        self._plain = Turns(vlm, self._default.policy, encoding=encoding)
        self._flags = true_and_false(vlm)

    def loss(self, task: Task, number: int) -> dict[str, torch.Tensor]:
        """Named losses; "loss" is minimized."""
        if task in ("guardrail", "reason", "told"):
            return self._under_policies(task, number)
        if task == "repeat":
            return {"loss": self._repeated(number)}
        shown = self.clips.group(self.settings["batch"], (self.settings["seed"], number, 0))
        examples = self._without_policy(task, shown, self._random(number))
        scored = teacher_forced(self.vlm, self._plain.head_without_policy, examples)
        loss = torch.stack(scored.losses).mean()
        return {"loss": loss, task: loss}

    def _under_policies(self, task: Task, number: int) -> dict[str, torch.Tensor]:
        groups, least, keep = self.settings["groups"], self.settings["least"], None
        if least is not None and task != "told":
            keep = share_at(number, least, self.settings["seed"])
        size = self.settings["batch"] // groups
        # what is written out is long, so fewer clips are
        size = max(1, size // 2) if task == "reason" else size
        whole, booleans = torch.zeros(2, device=self.vlm.device)
        for group in range(groups):
            rng = self._random(number, group)
            under = self._default if rng.random() < self.settings["own"] else sampled(rng)
            turns = Turns(self.vlm, under.policy, encoding=self.encoding)
            shown = self.clips.group(size, (self.settings["seed"], number, group))
            clips = [one.under(under) for one in shown]
            if task == "told":
                found = self._told(turns, shown, under, rng)
            else:
                answers = [
                    turns.screening(clip.labels)
                    if task == "guardrail"
                    else _reasoned(turns, clip, rng)
                    for clip in clips
                ]
                examples = [Example(c.video, (a,)) for c, a in zip(clips, answers, strict=True)]
                scored = teacher_forced(self.vlm, turns.opening(keep), examples)
                spans = [row[0] for row in scored.answers]
                found = (
                    scored.losses[0],
                    answer_loss(self.vlm, scored.hidden, scored.ids, spans, only=self._flags),
                )
            whole, booleans = whole + found[0] / groups, booleans + found[1] / groups
        loss = whole + self.settings["boolean_weight"] * booleans
        return {"loss": loss, task: whole, f"{task} booleans": booleans}

    def _told(
        self, turns: Turns, shown: Sequence[Shown], under: Ruled, rng: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The booleans for a few captions, without a video: cheap, and all about reading the policy."""
        pairs = []
        for clip in some_captions([Shown(s.record, s.under(under)) for s in shown], rng, 4):
            told = self.vlm.ids(prompts.frame_captions(clip.captions))
            prompt, answer = turns.screening(clip.labels)
            pairs.append((torch.cat([told, prompt]), answer))
        context = head_context(self.vlm, turns.opening())
        return self._continued(context.fork(len(pairs)).cache, context.position, pairs)

    def _continued(
        self, cache: Any, start: int, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids = pad_sequence(
            [torch.cat(pair) for pair in pairs],
            batch_first=True,
            padding_value=self.vlm.tokenizer.pad_token_id,
        )
        hidden = self.vlm.run(self.vlm.text_inputs(ids, start), cache)
        spans = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in pairs]
        return (
            answer_loss(self.vlm, hidden, ids, spans),
            answer_loss(self.vlm, hidden, ids, spans, only=self._flags),
        )

    def _without_policy(
        self, task: Task, shown: Sequence[Shown], rng: random.Random
    ) -> list[Example]:
        turns, found = self._plain, []
        for one in shown:
            clip = one.clip
            if task == "captions":
                first, second = rng.sample(clip.captions, 2)
                pair = (turns.caption(first, first=True), turns.caption(second, first=False))
                found.append(Example(clip.video, pair))
            elif task == "describe":
                found.append(Example(clip.video, (turns.description(clip),)))
            else:
                found.append(Example(clip.video, (self._question(*asked(one.record, rng)),)))
        return found

    def _question(self, question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        chat = self.vlm.layout(question)
        end = self.vlm.ids(self.vlm.tokenizer.eos_token)
        prompt = self.vlm.ids(chat.tail + chat.closing)
        return prompt, torch.cat([self.vlm.ids(answer), end])

    def _repeated(self, number: int) -> torch.Tensor:
        """Random words, and the same again: a category is found by its name, whatever it is."""
        rng, head = self._random(number), self._plain.head_without_policy
        texts = [repeated(rng) for _ in range(2 * self.settings["batch"])]
        closing = self._plain.layout.closing
        pairs = [
            (torch.cat([head, self.vlm.ids(prompt + closing)]), self.vlm.ids(answer))
            for prompt, answer in texts
        ]
        ids = pad_sequence(
            [torch.cat(pair) for pair in pairs],
            batch_first=True,
            padding_value=self.vlm.tokenizer.pad_token_id,
        )
        hidden = self.vlm.run(self.vlm.text_inputs(ids, 0))
        spans = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in pairs]
        return answer_loss(self.vlm, hidden, ids, spans)

    def _random(self, number: int, group: int = 0) -> random.Random:
        return random.Random(f"{self.settings['seed']}/{number}/{group}")


def _reasoned(
    turns: Turns, clip: LabelledClip, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """S2's request, half of the time with true captions, and made-up scores that lean towards the truth; its answer."""
    lean = 3 * rng.random()
    truth = clip.labels or ("safe",)
    raw = torch.tensor(
        [rng.gauss(0, 1.5) + lean * (name in truth) for name in turns.policy.labels]
    ).softmax(0)
    scores = dict(zip(turns.policy.labels, raw.tolist(), strict=True))
    captions = clip.captions if rng.random() < 0.5 else ()
    return turns.deliberation(clip, captions, scores, with_question=True)


def train(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: ``settings["steps"]`` batches of ``settings["tasks"]``, from the model of ``settings["from"]``."""
    use_all_cores()
    vlm = load_vlm(needs[settings["from"]])
    batches = Batches(vlm, needs, settings, Encoding(settings["encoding"]))
    tasks: Sequence[Task] = settings["tasks"]

    def loss_of_batch(number: int) -> dict[str, torch.Tensor]:
        return batches.loss(tasks[number % len(tasks)], number)

    learn(vlm, loss_of_batch, out, settings)
    save_vlm(vlm, out)


def learn(
    vlm: VisionLanguageModel,
    loss_of_batch: Callable[[int], dict[str, torch.Tensor]],
    out: Path,
    settings: dict[str, Any],
) -> None:
    """The loop with a recipe's settings."""
    config = LoopConfig(
        steps=settings["steps"],
        warmup=settings["warmup"],
        lr=settings["lr"],
        muon_lr=settings["muon_lr"],
        checkpoint_every=25,
        seed=settings["seed"],
    )
    fit(vlm.model, loss_of_batch, config, out, title=out.name.partition("-")[0])
