"""From what the cascade found to a Verdict.

Knows which verdict a result deserves, and that nothing that failed or was cut off is ever called safe.
Does not decide anything, and runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safelens.policy import SAFE, Policy
from safelens.verdict import (
    Caption,
    CategoryScore,
    Cost,
    ErrorInfo,
    Evidence,
    Provenance,
    Region,
    Stage,
    Verdict,
)
from safelens.video import Clip, VideoError

if TYPE_CHECKING:
    from safelens.deliberate import Deliberated
    from safelens.screen import Screened
    from safelens.vlm_cost import Spent


@dataclass
class Decoded:
    """A video on its way: its clip or why there is none, and seconds per stage so far."""

    path: str
    timing: dict[str, float]
    clip: Clip | None
    error: VideoError | None


@dataclass(frozen=True)
class Decision:
    """What a stage decided.

    Attributes:
        stage: which.
        flags: category id to whether it is violated.
        scores: category id (and "safe", from the screen) to its probability.
    """

    stage: Stage
    flags: dict[str, bool]
    scores: dict[str, float]

    @property
    def flagged(self) -> list[str]:
        """Ids of the violated categories."""
        return [name for name, flag in self.flags.items() if flag]

    @property
    def label(self) -> str:
        """The most probable of the violated categories, or "safe"."""
        return max(self.flagged, key=lambda name: self.scores[name]) if self.flagged else SAFE

    @property
    def confidence(self) -> float:
        """Probability of `label`; where only categories have one, "safe" is what none of them is."""
        if self.label in self.scores:
            return self.scores[self.label]
        return 1 - max(self.scores.values())


@dataclass(frozen=True)
class Outcome:
    """Makes verdicts under one policy.

    Attributes:
        policy: gives the categories.
        provenance: stands in every verdict.
    """

    policy: Policy
    provenance: Provenance

    def decided(
        self,
        video: Decoded,
        s1: Screened,
        decision: Decision,
        *,
        evidence: Sequence[Evidence],
        spent: Sequence[Spent],
        regions: Sequence[Region] = (),
        captions: Sequence[Caption] = (),
        s2: Deliberated | None = None,
    ) -> Verdict:
        """A decision; of a truncated video only if it is a violation, since the rest may hold one."""
        clip = _clip(video)
        undecided = clip.truncated and not decision.flagged
        return self._verdict(
            video,
            status="partial" if clip.truncated else "ok",
            flagged=None if undecided else bool(decision.flagged),
            label=None if undecided else decision.label,
            confidence=None if undecided else _unit(decision.confidence),
            categories=[
                CategoryScore(
                    id=c.id,
                    name=c.name,
                    flagged=None if undecided else decision.flags[c.id],
                    score=_unit(decision.scores[c.id]),
                )
                for c in self.policy.categories
            ],
            decided_by=decision.stage,
            in_domain=s1.in_domain,
            description=s2.description if s2 else None,
            explanation=s2.explanation if s2 else None,
            captions=list(captions),
            evidence=list(evidence),
            regions=list(regions),
            error=truncated(clip) if clip.truncated else None,
            cost=_cost(spent),
        )

    def out_of_domain(self, video: Decoded, s1: Screened) -> Verdict:
        """A clip that the bundle does not know."""
        knows = self.provenance.knows or "its training data"
        return self._verdict(
            video,
            status="out_of_domain",
            in_domain=s1.in_domain,
            error=ErrorInfo(
                code="out_of_domain",
                message=f"{video.path} does not look like what this bundle was trained on ({knows}); "
                "nothing was decided. Use --model with a model that knows such videos, or train a "
                "bundle",
            ),
            cost=_cost([s1.spent]),
        )

    def video_error(self, video: Decoded) -> Verdict:
        """A file that gave no clip."""
        error = video.error
        assert error is not None
        return self._verdict(
            video, status="video_error", error=ErrorInfo(code=error.code, message=error.message)
        )

    def model_error(self, video: Decoded, error: Exception) -> Verdict:
        """A clip on which a model failed."""
        return self._verdict(
            video,
            status="model_error",
            error=ErrorInfo(
                code=type(error).__name__,
                message=f"{video.path} decoded, but the model failed: "
                f"{error or type(error).__name__}. Try again; if it fails again, report the video's "
                "SHA-256 and this message",
            ),
        )

    def _verdict(self, video: Decoded, **fields: Any) -> Verdict:
        known = video.clip or video.error
        return Verdict(
            video=video.path,
            sha256=known.sha256 if known else None,
            timing=video.timing,
            provenance=self.provenance,
            **fields,
        )


def _clip(video: Decoded) -> Clip:
    assert video.clip is not None
    return video.clip


def truncated(clip: Clip) -> ErrorInfo:
    """What is said of a clip that is not all of its video."""
    notes = "; ".join(clip.notes) or "it ends early"
    return ErrorInfo(
        code="truncated",
        message=f"the video is damaged or cut off ({notes}); only what decoded was judged",
    )


def _cost(spent: Sequence[Spent]) -> Cost:
    flops = sum(s.flops for s in spent)
    return Cost(
        gflops=None if math.isnan(flops) else flops / 1e9,
        prompt_tokens=sum(s.prompt for s in spent),
        generated_tokens=sum(s.generated for s in spent),
    )


def _unit(score: float) -> float:
    return min(1.0, max(0.0, score))
