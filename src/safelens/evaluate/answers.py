"""What a system said of a video, in the one form that all metrics read.

Knows the outcomes that an answer can have and which fields go with each. Knows nothing of the truth, nor
of how a system works.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from safelens.policy import SAFE
from safelens.verdict import Caption, Evidence

Outcome = Literal["decided", "undecided", "unparsed", "failed"]
"""Only the first is an answer. "undecided": the system said that it cannot tell, such as of a video unlike
its training data. "unparsed": it wrote something that is no answer. "failed": it raised, timed out, or the
video could not be read. None of them ever counts as safe, or as right."""


class Answer(BaseModel):
    """One system's answer on one video.

    Attributes:
        id: The record's.
        outcome: Whether this is an answer at all.
        flags: Ids of the violated categories, empty for safe; None unless decided.
        label: The one class: the most probable of `flags`, or "safe"; None unless decided.
        scores: Category id, and "safe" where the system scores it, to probability; None where a system
            gives none. They need not sum to 1.
        confidence: Probability of `label`, if the system gives one.
        familiar: S1 alone: whether the domain guard knows the clip.
        text: What the system wrote, as it wrote it.
        description: The video's content in its words.
        explanation: Its reasons.
        captions: What it was told of the frames.
        evidence: When in the video.
        error: What went wrong, with what to do; set unless decided.
        seconds: Wall-clock time by stage ("decode", "screen", "caption", "deliberate", "request").
        gflops: Floating-point operations in units of 1e9, of all models; None where they cannot be known.
        prompt_tokens: Read by vision-language models; a captioner's are in `gflops` alone.
        generated_tokens: Written by them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str
    outcome: Outcome
    flags: tuple[str, ...] | None = None
    label: str | None = None
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    familiar: bool | None = None
    text: str | None = None
    description: str | None = None
    explanation: str | None = None
    captions: tuple[Caption, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    error: str | None = None
    seconds: dict[str, Annotated[float, Field(ge=0)]] = {}
    gflops: Annotated[float, Field(ge=0)] | None = None
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    generated_tokens: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _honest(self) -> Self:
        decided = self.outcome == "decided"
        if decided != (self.flags is not None) or decided != (self.label is not None):
            raise ValueError(f"{self.id}: flags and label stand in decided answers, and only there")
        if decided == (self.error is not None):
            raise ValueError(
                f"{self.id}: an error stands in answers that are not decided, and only there"
            )
        if self.flags is not None and self.label not in (self.flags or (SAFE,)):
            raise ValueError(f"{self.id}: label {self.label!r} is none of {self.flags or (SAFE,)}")
        return self
