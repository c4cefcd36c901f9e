"""What the dashboard counts over a period: volume, rates, seconds by stage, decisions by category.

Knows the tables. A rate without anything to divide is None, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from safelens.policy import SAFE
from safelens.service.tables import BundleVersion, Decision, Deployment, Job, VerdictRow

TIMED = 2000
"""Verdicts whose timings are read, the newest."""


@dataclass(frozen=True)
class Bar:
    """Verdicts of one part of the period, which begins at `start` (seconds since 1970)."""

    start: float
    flagged: int
    undecided: int
    safe: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.flagged + self.undecided + self.safe


@dataclass(frozen=True)
class Latency:
    """Seconds of one stage, of the verdicts that a model was run for."""

    stage: str
    count: int
    median: float
    p95: float


@dataclass(frozen=True)
class Judged:
    """What moderators made of verdicts with one label.

    Attributes:
        label: of the verdict; None where it decided nothing.
        confirmed, overturned, escalated: verdicts by their last decision.
    """

    label: str | None
    confirmed: int
    overturned: int
    escalated: int

    @property
    def rate(self) -> float | None:
        """Overturned among confirmed and overturned."""
        count = self.confirmed + self.overturned
        return self.overturned / count if count else None


@dataclass(frozen=True)
class Figures:
    """The dashboard's figures.

    Attributes:
        waiting: jobs that have no verdict now.
        bars: the verdicts of the period by its parts.
        deliberated: verdicts that S2 gave.
        reused: verdicts that were there already.
        latency: of each stage that ran.
        judged: by label, for verdicts of the period.
        knows: what the bundles that gave these verdicts are limited to.
    """

    waiting: int
    bars: tuple[Bar, ...]
    deliberated: int
    reused: int
    latency: tuple[Latency, ...]
    judged: tuple[Judged, ...]
    knows: tuple[str, ...]

    @property
    def verdicts(self) -> int:
        """All of the period."""
        return sum(bar.total for bar in self.bars)

    @property
    def flagged(self) -> int:
        """Those that flag."""
        return sum(bar.flagged for bar in self.bars)

    @property
    def undecided(self) -> int:
        """Those that decide nothing, errors too."""
        return sum(bar.undecided for bar in self.bars)

    @property
    def reviewed(self) -> int:
        """Those with a decision."""
        return sum(j.confirmed + j.overturned + j.escalated for j in self.judged)

    @property
    def escalated(self) -> int:
        """Those that moderators passed on."""
        return sum(j.escalated for j in self.judged)

    @property
    def overturned(self) -> int:
        """Those that moderators overturned."""
        return sum(j.overturned for j in self.judged)


def figures(session: Session, since: float, until: float, parts: int) -> Figures:
    """Count a period, in so many equal parts."""
    within = (VerdictRow.at >= since) & (VerdictRow.at < until)
    open_states = Job.state.in_(("fetching", "queued", "running"))

    def count(*conditions: Any) -> int:
        return session.scalar(select(func.count()).where(*conditions)) or 0

    return Figures(
        waiting=count(open_states),
        bars=_bars(session, since, until, parts),
        deliberated=count(within, VerdictRow.decided_by == "deliberate"),
        reused=count(within, VerdictRow.reused_from.is_not(None)),
        latency=_latency(session, within),
        judged=_judged(session, within),
        knows=limits(session, within),
    )


def limits(session: Session, within: Any) -> tuple[str, ...]:
    """What the bundles that gave these verdicts are limited to, in their own words."""
    found = session.scalars(
        select(BundleVersion.knows)
        .join(Deployment, Deployment.bundle_sha256 == BundleVersion.sha256)
        .join(Job, Job.deployment_id == Deployment.id)
        .join(VerdictRow, VerdictRow.job_id == Job.id)
        .where(within, BundleVersion.knows.is_not(None))
        .distinct()
    )
    return tuple(text for text in found if text)


def _bars(session: Session, since: float, until: float, parts: int) -> tuple[Bar, ...]:
    edges = np.linspace(since, until, parts + 1)
    before = ((VerdictRow.at < float(end), i) for i, end in enumerate(edges[1:]))
    part = case(*before, else_=parts - 1).label("part")
    rows = session.execute(
        select(part, VerdictRow.flagged, func.count())
        .where(VerdictRow.at >= since, VerdictRow.at < until)
        .group_by("part", VerdictRow.flagged)
    ).all()
    counted = {(index, flagged): number for index, flagged, number in rows}
    return tuple(
        Bar(float(edges[i]), *(counted.get((i, flagged), 0) for flagged in (True, None, False)))
        for i in range(parts)
    )


def _latency(session: Session, within: Any) -> tuple[Latency, ...]:
    documents = session.scalars(
        select(VerdictRow.document)
        .where(within, VerdictRow.reused_from.is_(None))
        .order_by(VerdictRow.at.desc())
        .limit(TIMED)
    )
    seconds: dict[str, list[float]] = {}
    for document in documents:
        timing = json.loads(document)["timing"]
        for stage, value in timing.items():
            seconds.setdefault(stage, []).append(value)
        if timing:
            seconds.setdefault("total", []).append(sum(timing.values()))
    order = ["decode", "screen", "evidence", "caption", "deliberate", "total"]
    return tuple(
        Latency(s, len(seconds[s]), *_quantiles(seconds[s]))
        for s in sorted(seconds, key=lambda s: order.index(s) if s in order else -1)
    )


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    median, p95 = np.quantile(values, [0.5, 0.95])
    return float(median), float(p95)


def _judged(session: Session, within: Any) -> tuple[Judged, ...]:
    last = select(func.max(Decision.id)).group_by(Decision.job_id)
    rows = session.execute(
        select(VerdictRow.label, Decision.kind, func.count())
        .join(VerdictRow, VerdictRow.job_id == Decision.job_id)
        .where(within, Decision.id.in_(last))
        .group_by(VerdictRow.label, Decision.kind)
    ).all()
    counted = {(label, kind): number for label, kind, number in rows}
    names = sorted({label for label, _ in counted}, key=lambda x: (x is None, x == SAFE, x))
    return tuple(
        Judged(x, *(counted.get((x, kind), 0) for kind in ("confirm", "overturn", "escalate")))
        for x in names
    )
