"""From which confidence on S1's answer stands: one tau, or one for each class that S1 may answer.

Knows classes and confidences. The cascade and its evaluation both ask here. Does not know how a threshold
is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Thresholds:
    """When S1's answer stands.

    Attributes:
        tau: For every class without its own; above 1, its answers all go to S2.
        taus: In place of `tau`, by the class that S1 answers (category id or "safe").
    """

    tau: float
    taus: Mapping[str, float] = field(default_factory=dict)

    def of(self, label: str) -> float:
        """The threshold of S1's answers of this class."""
        return self.taus.get(label, self.tau)

    def passed(self, label: str, confidence: float) -> bool:
        """Whether an answer of this class and confidence stands on a video that is familiar."""
        return confidence >= self.of(label)

    @property
    def short(self) -> str:
        """Such as "tau 0.9", or "tau by class"."""
        return "tau by class" if self.taus else f"tau {shown(self.tau)}"

    def __str__(self) -> str:
        """Such as "tau 0.9", or "tau by class: safe 0.8125, abuse none, all to S2"."""
        if not self.taus:
            return f"tau {shown(self.tau)}"
        return "tau by class: " + ", ".join(f"{n} {shown(t)}" for n, t in self.taus.items())


def shown(tau: float) -> str:
    """A threshold for people."""
    return "none, all to S2" if tau > 1 else f"{tau:.4g}"
