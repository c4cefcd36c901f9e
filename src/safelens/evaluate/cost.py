"""What answers cost: seconds by stage, floating-point operations, tokens, per video.

Knows the costs that an answer carries. Knows nothing of right or wrong. A failed answer broke off on the
way, so what it spent says nothing of what answering costs: it is left out of every figure, and counted. A
figure is None where one of the other answers does not tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safelens.evaluate.answers import Answer


@dataclass(frozen=True)
class Times:
    """Wall-clock seconds over videos.

    Attributes:
        videos: How many.
        mean: Arithmetic mean.
        median: Half of the videos take no longer.
        p95: 95 % of them take no longer (linear between neighbours).
    """

    videos: int
    mean: float
    median: float
    p95: float


@dataclass(frozen=True)
class Costs:
    """What one system costs per video.

    Attributes:
        videos: Answers that did not fail; the figures are of them.
        failed: Answers that did.
        seconds: Of all stages together, on the machine that the answers were made on.
        stages: Of each stage, over the videos that entered it.
        gflops: Mean floating-point operations, in units of 1e9.
        prompt_tokens: Mean; None also where a count is 0, which is how an endpoint that counts none is kept.
        generated_tokens: Mean; None wherever `prompt_tokens` is.
    """

    videos: int
    failed: int
    seconds: Times | None
    stages: dict[str, Times]
    gflops: float | None
    prompt_tokens: float | None
    generated_tokens: float | None


def total_seconds(answer: Answer) -> float | None:
    """Seconds of all stages of an answer; None where it failed or was not timed."""
    return sum(answer.seconds.values()) if answer.outcome != "failed" and answer.seconds else None


def costs(answers: Sequence[Answer]) -> Costs:
    """The costs of one system.

    Args:
        answers: One a video, of any outcome.
    """
    known = [answer for answer in answers if answer.outcome != "failed"]
    stages: dict[str, list[float]] = {}
    for answer in known:
        for stage, seconds in answer.seconds.items():
            stages.setdefault(stage, []).append(seconds)
    counted = all(answer.prompt_tokens for answer in known)
    return Costs(
        videos=len(known),
        failed=len(answers) - len(known),
        seconds=_times([total_seconds(answer) for answer in known]),
        stages={stage: found for stage, s in stages.items() if (found := _times(s)) is not None},
        gflops=mean([answer.gflops for answer in known]),
        prompt_tokens=mean([answer.prompt_tokens if counted else None for answer in known]),
        generated_tokens=mean([answer.generated_tokens if counted else None for answer in known]),
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Arithmetic mean; None of nothing, and where one is unknown."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _times(seconds: Sequence[float | None]) -> Times | None:
    average = mean(seconds)
    if average is None:
        return None
    median, p95 = np.quantile(np.array(seconds, float), (0.5, 0.95))
    return Times(len(seconds), average, float(median), float(p95))
