"""A cascade under evaluation: S1 and S2 on every clip, whatever tau says, each with its own answer; a bundle's.

Knows the parts of a `SafeLens` and what each answer would have cost in use. S2 can be left
out. Which of the two answers the cascade gives is the matter of `routing`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from safelens import prompts
from safelens.assembly import thresholds_of
from safelens.bundle import Bundle, BundleError, ClipSettings, PruneSettings
from safelens.cascade import SafeLens, default_device
from safelens.evaluate.answers import Answer
from safelens.evaluate.routing import OutsideDomain
from safelens.evaluate.system import SCHEMA, SystemsError, answered, cost, failed
from safelens.outcome import Decision
from safelens.policy import Policy
from safelens.thresholds import Thresholds
from safelens.verdict import Caption, Evidence
from safelens.video import Clip
from safelens.vlm_cost import Spent

if TYPE_CHECKING:
    from safelens.screen import Screened


class Cascade(ABC):
    """Both stages of a cascade; what it is made of is for its subclasses to say.

    The answer of "screen" costs what the cascade costs where S1's answer stands, that of "deliberate" what it
    costs where S2 is asked: screen and captions included, evidence only of what that answer flags. As in
    verdicts, `gflops` are of all models, the captioner too, and tokens the vision-language models' alone.

    Attributes:
        policy: what it judges by.
        stages: what it gives an answer of.
        clip: how its clips are sampled.
        thresholds: from which confidence on S1's answer stands.
        outside_domain: what happens to a clip that S1 does not know.
        knows: what it is limited to, in words for a reader, or None.
    """

    concurrency = 1
    down: str | None = None
    local = True
    policy: Policy
    stages: tuple[str, ...]
    clip: ClipSettings
    thresholds: Thresholds
    outside_domain: OutsideDomain
    knows: str | None
    _lens: SafeLens | None = None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """See :class:`System`."""

    @abstractmethod
    def _load(self) -> SafeLens:
        """Load the models. Raises SystemsError."""

    async def __aenter__(self) -> Self:
        """Load the models. Raises SystemsError."""
        self._lens = await asyncio.to_thread(self._load)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._lens is not None:
            self._lens.close()
            self._lens = None

    async def answer(self, clip: Clip) -> dict[str, Answer]:
        """Each stage's answer on a clip; raises what S1 raises."""
        assert self._lens is not None
        return await asyncio.to_thread(_ask, self._lens, clip, self.stages)


class SafeLensSystem(Cascade):
    """A bundle.

    Args:
        where: names the system in messages.
        bundle: name, directory or hub id.
        policy: in place of the bundle's own; None keeps that.
        screen_only: ask S1 alone. Its answers are kept beside those of both stages, so that either finds the
            other's; asking S2 later runs S1's model again, whose cache S2 continues.
        temperature: in place of the bundle's, which must have a probe; None keeps that.
        prune: share of a video's tokens that stay, in place of the bundle's; None keeps that.

    Raises:
        SystemsError: the bundle is damaged, the policy is none that it judges by, or it reads the policy as one text
            and cannot prune.
    """

    def __init__(
        self,
        where: str,
        bundle: str,
        policy: Policy | None = None,
        *,
        screen_only: bool = False,
        temperature: float | None = None,
        prune: float | None = None,
    ) -> None:
        self._where = where
        self._source = bundle
        try:
            self._bundle = Bundle.load(bundle)
            if policy is not None:
                self._bundle.check_policy(policy)
        except BundleError as error:
            raise SystemsError(f"{where}: {error}") from error
        settings = self._bundle.settings
        if temperature is not None:
            screen = settings.screen.model_copy(update={"temperature": temperature})
            settings = settings.model_copy(update={"screen": screen})
        if prune is not None:
            if settings.policy_encoding != "parallel":
                raise SystemsError(
                    f"{where}: prune: bundle {settings.name} reads its policy as one text; pruning needs one with "
                    "policy_encoding: parallel"
                )
            layer = None if settings.prune is None else settings.prune.layer
            settings = settings.model_copy(update={"prune": PruneSettings(keep=prune, layer=layer)})
        self._settings = settings
        self.stages: tuple[str, ...] = ("screen",) if screen_only else ("screen", "deliberate")
        self.policy = policy or self._bundle.policy
        self.clip = settings.clip
        self.thresholds = thresholds_of(self._bundle, self.policy)
        self.outside_domain = settings.outside_domain
        self.knows = settings.knows

    def identity(self) -> dict[str, Any]:
        """All that the two answers depend on: not tau, nor what happens outside the domain.

        The temperature counts: S2 is told the scores that are made with it.
        """
        s = self._settings
        parts = [s.screen.model, s.screen.probe, s.screen.domain]
        parts += [s.deliberate.captioner, s.deliberate.model, s.deliberate.adapter]
        used = tuple(f"{part}/" for part in parts if part is not None)
        files = {n: d for n, d in s.files.items() if n in parts or n.startswith(used)}
        scores = dict.fromkeys(self.policy.labels, 0.0)
        texts = [prompts.policy_prompt(self.policy), prompts.question(self.policy)]
        texts += [prompts.screening_suffix()]
        texts += [prompts.deliberation_request(self.policy, [Caption(time_s=0, text="")], scores)]
        names = {"layout", "clip", "screen", "deliberate"}
        if s.policy_encoding == "parallel":
            names |= {"policy_encoding", "prune"}
            texts += [prompts.policy_intro(), prompts.open_question()]
            texts += [prompts.category_block(category) for category in self.policy.categories]
        return {
            "schema": SCHEMA,
            "kind": "safelens",
            "files": files,
            "settings": s.model_dump(mode="json", include=names),
            "policy_sha256": self.policy.sha256,
            "texts": texts,
            "device": default_device(),
        }

    def _load(self) -> SafeLens:
        from safelens.captioner import CaptionerError
        from safelens.screen import ProbeReader
        from safelens.vlm_loading import ModelLoadError

        try:
            keep = None if self._settings.prune is None else self._settings.prune.keep
            lens = SafeLens.load(self._source, policy=self.policy, prune=keep)
        except (BundleError, ModelLoadError, CaptionerError) as error:
            raise SystemsError(f"{self._where}: {error}") from error
        if isinstance(lens.screener.reader, ProbeReader):
            lens.screener.reader.temperature = self._settings.screen.temperature
        return lens


@dataclass(frozen=True)
class _Reached:
    """What a stage decided, and what it took to get there, evidence left out."""

    decision: Decision
    spent: list[Spent]
    seconds: dict[str, float]
    fields: dict[str, Any]


def _ask(lens: SafeLens, clip: Clip, stages: Collection[str]) -> dict[str, Answer]:
    began = time.perf_counter()
    [s1] = lens.screener.screen([clip])
    seconds = {"screen": time.perf_counter() - began}
    flags = {c.id: c.id == s1.label for c in lens.policy.categories}
    scores = {name: _unit(score) for name, score in s1.scores.items()}
    screen = _Reached(
        Decision("screen", flags, s1.scores), [replace(s1.spent)], seconds, {"scores": scores}
    )
    deliberate: _Reached | Exception | None = None
    if "deliberate" in stages:  # before evidence is sought, whose cost S1's and S2's answer share
        try:
            deliberate = _deliberate(lens, clip, s1, dict(seconds))
        except Exception as error:
            deliberate = error
    moments = _Moments(lens, clip, s1)
    # Of an unfamiliar clip S1's answer never stands, so the cascade seeks no evidence for it.
    answers = {"screen": _answer(clip, s1, screen, moments if s1.familiar else None)}
    if deliberate is not None:
        answers["deliberate"] = _answer(clip, s1, deliberate, moments)
    return answers


def _deliberate(lens: SafeLens, clip: Clip, s1: Screened, seconds: dict[str, float]) -> _Reached:
    captions: tuple[Caption, ...] = ()
    others = [Spent()]
    if lens.captioner is not None:
        began = time.perf_counter()
        [captions] = lens.captioner.describe([clip], spent=others)
        seconds["caption"] = time.perf_counter() - began
    began = time.perf_counter()
    if lens.deliberator.vlm is lens.screener.vlm:
        context = s1.context
    else:
        context = lens.deliberator.read_video(clip)
        others.append(context.spent)
    s2 = lens.deliberator.deliberate(context, captions, s1.scores)
    seconds["deliberate"] = time.perf_counter() - began
    fields = {
        "scores": {name: _unit(score) for name, score in s2.scores.items()},
        "text": s2.text,
        "description": s2.description,
        "explanation": s2.explanation,
        "captions": captions,
    }
    spent = [replace(s1.spent), *others]
    return _Reached(Decision("deliberate", s2.flags, s2.scores), spent, seconds, fields)


class _Moments:
    """When in a clip: asked once for both answers; each that needs it bears the whole cost."""

    def __init__(self, lens: SafeLens, clip: Clip, s1: Screened) -> None:
        self._screener, self._clip, self._s1 = lens.screener, clip, s1
        self._seconds: float | None = None
        self._spent = Spent()

    def evidence(self, categories: list[str]) -> tuple[tuple[Evidence, ...], float, Spent]:
        """Of these categories: evidence, seconds and cost."""
        before, began = replace(self._s1.spent), time.perf_counter()
        found = [
            e for name in categories for e in self._screener.evidence(self._s1, self._clip, name)
        ]
        if self._seconds is None:
            after = self._s1.spent
            self._seconds = time.perf_counter() - began
            self._spent = Spent(
                after.prompt - before.prompt,
                after.generated - before.generated,
                after.flops - before.flops,
            )
        return tuple(found), self._seconds, self._spent


def _answer(
    clip: Clip, s1: Screened, reached: _Reached | Exception, moments: _Moments | None
) -> Answer:
    if isinstance(reached, Exception):
        return failed(clip.sha256, clip.path, reached, familiar=s1.familiar)
    evidence: tuple[Evidence, ...] = ()
    seconds, spent = dict(reached.seconds), list(reached.spent)
    decision = reached.decision
    if decision.flagged and moments is not None:
        try:
            evidence, seconds["evidence"], more = moments.evidence(decision.flagged)
        except Exception as error:
            return failed(clip.sha256, clip.path, error, familiar=s1.familiar)
        spent.append(more)
    return answered(
        clip,
        decision.flagged,
        decision.label,
        confidence=_unit(decision.confidence),
        familiar=s1.familiar,
        evidence=evidence,
        seconds=seconds,
        **reached.fields,
        **cost(spent),
    )


def _unit(score: float) -> float:
    return min(1.0, max(0.0, score))
