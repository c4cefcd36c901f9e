"""The cascade's answer from those of its two stages, for any thresholds, without a model.

Knows Algorithm 2 from line 5 on, as `cascade.SafeLens` does it; a test holds the two against each other.
"""

from __future__ import annotations

from typing import Literal

from safelens.evaluate.answers import Answer
from safelens.policy import SAFE
from safelens.thresholds import Thresholds

OutsideDomain = Literal["escalate", "refuse"]


def route(
    screen: Answer,
    deliberate: Answer,
    thresholds: Thresholds,
    outside_domain: OutsideDomain = "escalate",
) -> Answer:
    """The answer that the cascade gives, with the cost that it has on the way there.

    Args:
        screen: S1's answer on a video; its `confidence` may have been calibrated.
        deliberate: S2's on the same; its cost holds that of screen and captions before it.
        thresholds: from which confidence on S1's answer stands.
        outside_domain: what happens to a clip that the domain guard does not know.
    """
    if screen.outcome == "failed" or screen.confidence is None:
        return screen
    if screen.familiar is False and outside_domain == "refuse":
        return screen.model_copy(
            update={
                "outcome": "undecided",
                "flags": None,
                "label": None,
                "error": f"{screen.id} does not look like what this bundle was trained on; nothing was "
                "decided",
            }
        )
    # S1's answer on a truncated video has no label where it flags nothing.
    label = screen.label or SAFE
    if screen.familiar is not False and thresholds.passed(label, screen.confidence):
        return screen
    return deliberate
