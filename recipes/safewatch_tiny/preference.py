"""Stage: preference post-tuning on concise, specific, right explanations against long or false ones.

Knows what makes an answer worse. Knows nothing of the loss.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recipes.safewatch_tiny.clips import Clips, Shown
from recipes.safewatch_tiny.kept import copied_adapter
from recipes.safewatch_tiny.policies import Ruled, default_policy, sampled
from recipes.tiny.parts import load_vlm, use_all_cores
from safelens.assembly import Encoding
from safelens.safewatch.blocks import PolicyBlocks
from safelens.safewatch.parallel import ParallelPrompt
from safelens.train.embedder import LabelledClip, Turns, share_at
from safelens.train.loop import LoopConfig
from safelens.train.preferences import Preference, PreferenceBatch, train_preferences
from safelens.train.reasoner import AugmentedClip

_FILLER = (
    "Many things could be said of this video and of its place, and not all of them matter.",
    "The policy has rules, and every rule has been considered with care.",
    "Videos like this one should be looked at closely before anything is decided.",
)
"""True of any video, and so of none."""


def tune(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: SafeWatch's third, as an adapter on the frozen model of the second."""
    use_all_cores()
    if copied_adapter(out):
        return
    vlm = load_vlm(needs["pruning"])
    clips, encoding = Clips(needs, vlm), Encoding("parallel", keep=settings["least"])
    blocks = PolicyBlocks(vlm)

    def batch_at(number: int) -> PreferenceBatch:
        rng = random.Random(f"{settings['seed']}/preference/{number}")
        under = default_policy() if rng.random() < settings["own"] else sampled(rng)
        keep = share_at(number, settings["least"], settings["seed"])
        shown = clips.group(settings["batch"], (settings["seed"], number, 9))
        others = clips.group(settings["batch"], (settings["seed"], number, 10))
        return PreferenceBatch(
            Turns(vlm, under.policy, encoding=encoding),
            ParallelPrompt(blocks, under.policy, keep=keep),
            [preference(*pair, under, rng) for pair in zip(shown, others, strict=True)],
        )

    config = LoopConfig(
        steps=settings["steps"],
        warmup=settings["warmup"],
        lr=settings["lr"],
        muon_lr=None,
        weight_decay=0.0,
        checkpoint_every=20,
        seed=settings["seed"],
    )
    train_preferences(
        vlm,
        batch_at,
        out,
        config,
        rank=settings["rank"],
        alpha=2 * settings["rank"],
        beta=settings["beta"],
    )


def preference(shown: Shown, other: Shown, under: Ruled, rng: random.Random) -> Preference:
    """A clip's right answer, and one that is long, false in what it explains, or false in what it flags."""
    clip = shown.under(under)
    truth = clip.labels or ("safe",)
    lean = 3 * rng.random()
    labels = under.policy.labels
    raw = torch.tensor([rng.gauss(0, 1.5) + lean * (name in truth) for name in labels]).softmax(0)
    scores = dict(zip(labels, raw.tolist(), strict=True))
    worse = rng.choice((wordy, false_explanation, false_flags))(clip, other, under, rng)
    captions = clip.captions if rng.random() < 0.5 else ()
    return Preference(AugmentedClip(clip, captions, scores), worse)


def wordy(clip: LabelledClip, other: Shown, under: Ruled, rng: random.Random) -> LabelledClip:
    """The right explanation in a crowd of sentences that fit any video."""
    before, after = rng.sample(_FILLER, 2)
    return replace(clip, explanation=f"{before} {clip.explanation} {after}")


def false_explanation(
    clip: LabelledClip, other: Shown, under: Ruled, rng: random.Random
) -> LabelledClip:
    """The right flags for what another clip shows; where both are explained alike, the long one."""
    told = other.under(under).explanation
    if told == clip.explanation:
        return wordy(clip, other, under, rng)
    return replace(clip, explanation=told)


def false_flags(clip: LabelledClip, other: Shown, under: Ruled, rng: random.Random) -> LabelledClip:
    """What is seen told rightly and judged wrongly: a category that does not block it, or none where one does."""
    seen = clip.explanation.partition(":")[0]
    if clip.labels:
        return replace(clip, explanation=f"{seen}: no rule blocks it.", labels=())
    wrong = rng.choice(under.policy.categories)
    return replace(clip, explanation=f"{seen}: {wrong.name} blocks it.", labels=(wrong.id,))
