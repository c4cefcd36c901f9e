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

from recipes.safewatch_tiny import booleans
from recipes.safewatch_tiny.clips import Clips, Shown, asked
from recipes.safewatch_tiny.kept import load_kept, round_weights
from recipes.safewatch_tiny.kinds import kinds_of
from recipes.safewatch_tiny.policies import Ruled, default_policy, sampled
from recipes.tiny.parts import load_vlm, save_vlm, use_all_cores
from safelens.assembly import Encoding
from safelens.train.embedder import LabelledClip, Turns, share_at
from safelens.train.loop import LoopConfig, fit
from safelens.train.sequences import Example, teacher_forced
from safelens.vlm import VisionLanguageModel

Task = Literal["guardrail", "reason", "captions", "questions"]
"""`guardrail`: each category's boolean as S1 asks it; `reason`: S2's whole answer. These are under a policy.
`questions`: a boolean for each of some phrases; `captions`: two of the clip's. These are without one."""
GUARDRAIL: tuple[Task, ...] = (
    *("guardrail", "guardrail", "guardrail", "questions"),
    *("guardrail", "guardrail", "guardrail", "reason", "questions"),
    *("guardrail", "guardrail", "guardrail", "captions", "questions"),
)
"""Tasks of the first stage, batch after batch."""
PRUNING: tuple[Task, ...] = (
    *("guardrail", "guardrail", "guardrail", "guardrail", "guardrail", "guardrail", "reason"),
)
"""Of the second."""


class Batches:
    """Losses of batches by number.

    Args:
        vlm: is trained.
        needs: folders of the stages, "train" among them.
        settings: "batch" clips; "phrases" are asked of them at most; "lessons" follow each other, each of so many
            "steps" in "groups" under a policy each, "own" being the share of them under the default policy and "most"
            the categories of others; "seed"; "others" weighs what is no boolean: their gradients are many times as
            long, and would fill the optimizer's momentum; "least" is the least share of a video's tokens that stays,
            drawn anew for each batch, or None: all stay.
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

    def loss(self, task: Task, number: int) -> dict[str, torch.Tensor]:
        """Named losses; "loss" is minimized."""
        if task == "guardrail":
            return self._booleans(number)
        if task == "questions":
            return self._questions(number)
        found = self._reasoned(number) if task == "reason" else self._captions(number)
        return {"loss": self.settings["others"] * found, task: found}

    def _captions(self, number: int) -> torch.Tensor:
        rng, turns, examples = self._random(number), self._plain, []
        for one in self._shown(self.settings["batch"], number, 0):
            first, second = rng.sample(one.clip.captions, 2)
            pair = (turns.caption(first, first=True), turns.caption(second, first=False))
            examples.append(Example(one.clip.video, pair))
        scored = teacher_forced(self.vlm, turns.head_without_policy, examples)
        return torch.stack(scored.losses).mean()

    def _questions(self, number: int) -> dict[str, torch.Tensor]:
        shown = self._shown(self.settings["batch"], number, 0)
        phrases, truth = asked([one.record for one in shown], self._random(number))
        most = self.settings["phrases"]
        videos = [one.clip.video for one in shown]
        states = booleans.of_questions(self.vlm, videos, phrases[:most])
        return self._told("questions", [states], [truth[:, :most]])

    def _booleans(self, number: int) -> dict[str, torch.Tensor]:
        states, truth = [], []
        groups = self._lesson(number)["groups"]
        for group in range(groups):
            under, turns = self._policy(number, group)
            shown = self._shown(self.settings["batch"] // groups, number, group, under)
            videos = [one.clip.video for one in shown]
            states.append(booleans.of_videos(turns, videos, self._keep(number)))
            truth.append(_truth(turns, shown, under))
        return self._told("guardrail", states, truth)

    def _told(
        self, task: Task, states: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        loss = booleans.balanced_loss(self.vlm, states, truth)
        return {"loss": loss, task: loss, "right": _right(self.vlm, states, truth)}

    def _reasoned(self, number: int) -> torch.Tensor:
        # what is written out is long, so one group of fewer clips
        rng = self._random(number)
        under, turns = self._policy(number, 0, most=6)
        shown = self._shown(self.settings["batch"] // 2, number, 0, under)
        answers = [_deliberated(turns, one.under(under), rng) for one in shown]
        examples = [Example(o.clip.video, (a,)) for o, a in zip(shown, answers, strict=True)]
        return teacher_forced(self.vlm, turns.opening(self._keep(number)), examples).losses[0]

    def _lesson(self, number: int) -> dict[str, Any]:
        *earlier, last = self.settings["lessons"]
        for lesson in earlier:
            if number < lesson["steps"]:
                return lesson
            number -= lesson["steps"]
        return last

    def _policy(self, number: int, group: int, most: int | None = None) -> tuple[Ruled, Turns]:
        rng, lesson = self._random(number, group), self._lesson(number)
        own = rng.random() < lesson["own"]
        most = min(lesson["most"], most or lesson["most"])
        under = self._default if own else sampled(rng, most=most)
        return under, Turns(self.vlm, under.policy, encoding=self.encoding)

    def _shown(self, size: int, number: int, group: int, under: Ruled | None = None) -> list[Shown]:
        return self.clips.group(size, (self.settings["seed"], number, group), under)

    def _keep(self, number: int) -> float | None:
        least = self.settings["least"]
        return None if least is None else share_at(number, least, self.settings["seed"])

    def _random(self, number: int, group: int = 0) -> random.Random:
        return random.Random(f"{self.settings['seed']}/{number}/{group}")


def _truth(turns: Turns, shown: Sequence[Shown], under: Ruled) -> torch.Tensor:
    """Of each clip, whether it violates each category as the turns list them, bool (B, C)."""
    found = [under.labels(kinds_of(one.record)) for one in shown]
    return torch.tensor([[c.id in labels for c in turns.policy.categories] for labels in found])


@torch.no_grad()
def _right(
    vlm: VisionLanguageModel, states: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Share of booleans that are right, of what is true and of what is false, the two taken alike."""
    said = torch.cat([booleans.log_odds(vlm, part).flatten() > 0 for part in states])
    wanted = torch.cat([part.flatten() for part in truth]).to(said.device)
    rates = [(said == wanted)[wanted == kind].float().mean() for kind in (True, False)]
    return torch.stack(rates).nanmean()


def _deliberated(
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
    """Stage: ``settings["steps"]`` batches of ``settings["tasks"]``, from the model of ``settings["from"]``.

    The vision tower stays as it is: it sees already.
    """
    use_all_cores()
    vlm = load_vlm(needs[settings["from"]])
    if not load_kept(vlm, out.name):
        vlm.model.model.visual.requires_grad_(False)
        batches = Batches(vlm, needs, settings, Encoding(settings["encoding"]))
        tasks: Sequence[Task] = settings["tasks"]

        def loss_of_batch(number: int) -> dict[str, torch.Tensor]:
            return batches.loss(tasks[number % len(tasks)], number)

        learn(vlm, loss_of_batch, out, settings)
        round_weights(vlm)
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
        checkpoint_every=20,
        seed=settings["seed"],
    )
    fit(vlm.model, loss_of_batch, config, out, title=out.name.partition("-")[0])
