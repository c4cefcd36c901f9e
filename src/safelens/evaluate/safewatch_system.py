"""SafeWatch's way to read any model, under evaluation: categories alone, videos thinned, nothing trained.

Knows the model and what its answers depend on. How both stages answer is the matter of `safelens_system`.
"""

from __future__ import annotations

from typing import Any

from safelens import prompts
from safelens.assembly import UNCALIBRATED_TAU, default_device
from safelens.bundle import ClipSettings
from safelens.cascade import SafeLens
from safelens.evaluate.safelens_system import Cascade
from safelens.evaluate.system import SCHEMA, SystemsError
from safelens.policy import Policy
from safelens.thresholds import Thresholds
from safelens.verdict import Caption


class SafeWatchSystem(Cascade):
    """A vision-language model as it is; S1 scores the label answers.

    Args:
        where: names the system in messages.
        model: directory or hub id.
        policy: what it judges by, any.
        captioner: directory or hub id of a Florence-2; None deliberates without captions, as SafeWatch does.
        prune: share of a video's tokens that stay; None keeps all.
    """

    def __init__(
        self,
        where: str,
        model: str,
        policy: Policy,
        *,
        captioner: str | None = None,
        prune: float | None = None,
    ) -> None:
        self._where, self._model, self._captioner, self._prune = where, model, captioner, prune
        self.policy = policy
        self.stages = ("screen", "deliberate")
        self.clip = ClipSettings()
        self.thresholds = Thresholds(UNCALIBRATED_TAU)
        self.outside_domain = "escalate"
        self.knows = None

    def identity(self) -> dict[str, Any]:
        """See :class:`System`; a model of the hub that is not here yet is fetched for it."""
        scores = dict.fromkeys(self.policy.labels, 0.0)
        texts = [prompts.policy_intro(), prompts.open_question(), prompts.screening_suffix()]
        texts += [prompts.category_block(category) for category in self.policy.by_name().categories]
        texts += [prompts.deliberation_request(self.policy, [Caption(time_s=0, text="")], scores)]
        return {
            "schema": SCHEMA,
            "kind": "safewatch",
            "model": self._digest(self._model),
            "captioner": None if self._captioner is None else self._digest(self._captioner),
            "prune": self._prune,
            "clip": self.clip.model_dump(),
            "policy_sha256": self.policy.sha256,
            "texts": texts,
            "device": default_device(),
        }

    def _digest(self, source: str) -> str:
        from safelens.vlm_loading import files_digest

        try:
            return files_digest(source)
        except Exception:  # of the hub's client, as many kinds as there are causes
            self._load().close()
            return files_digest(source)

    def _load(self) -> SafeLens:
        from safelens.captioner import CaptionerError
        from safelens.vlm_loading import ModelLoadError

        try:
            return SafeLens.zero_shot(
                self._model,
                captioner=self._captioner,
                policy=self.policy,
                policy_encoding="parallel",
                prune=self._prune,
            )
        except (ModelLoadError, CaptionerError) as error:
            raise SystemsError(f"{self._where}: {error}") from error
