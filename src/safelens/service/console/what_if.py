"""Tau as cost against error, from verdicts that moderators have judged.

A verdict keeps the answer of the stage that decided, and no other. So of a video that S1 decided, S2's answer is
unknown: what a stricter tau would make of it is known within bounds only, S2 right or S2 wrong. And of a video
that S2 decided, S1's confidence is unknown: what a looser tau would do cannot be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from safelens.calibrate import FEWEST, Screening
from safelens.policy import SAFE
from safelens.service.deployments import active
from safelens.service.tables import Decision, Deployment, Job, VerdictRow
from safelens.tradeoff import operating_points
from safelens.verdict import Verdict

MOST = 5000
"""Decisions that are looked at, the newest."""
_SHOWN = 60
_S1 = ("decode", "screen", "evidence")


@dataclass(frozen=True)
class Point:
    """The cascade at one tau.

    Attributes:
        tau: above 1 lets S2 decide everything.
        escalated: share of videos that go to S2.
        seconds: mean of a video.
        least, most: share of videos on which the cascade errs, if S2 were right or wrong on all videos of
            which its answer is unknown.
        guess: the same, if S2 were right on those as often as on the videos that it decided.
        alone, wrong: videos that S1 decides alone, and errors among them.
    """

    tau: float
    escalated: float
    seconds: float
    least: float
    most: float
    guess: float
    alone: int
    wrong: int


@dataclass(frozen=True)
class WhatIf:
    """What the decisions tell of other taus.

    Attributes:
        tau: the active one.
        decided: judged verdicts of the active bundle, policy and tau.
        by_s2, s2_right: those that S2 gave, and the right ones among them.
        needed: fewest judged verdicts that figures are shown of.
        points: from the active tau to S2 for everything; empty if nothing can be told.
        reason: why nothing can be told.
    """

    tau: float
    decided: int
    by_s2: int
    s2_right: int
    needed: int
    points: tuple[Point, ...]
    reason: str | None


@dataclass(frozen=True)
class _Case:
    confidence: float
    by_s1: bool
    right: bool
    s1_seconds: float
    s2_seconds: float


def what_if(session: Session) -> WhatIf:
    """Read decisions under the active bundle, policy and tau. Raises Problem where nothing is active."""
    now = active(session)
    cases = list(_cases(session, now))
    second = [case.s2_seconds for case in cases if not case.by_s1]
    first = sum(case.by_s1 for case in cases)
    reason = None
    if len(cases) < FEWEST:
        reason = (
            f"{len(cases)} judged verdicts are too few: below {FEWEST}, one decision more or less would move "
            "every figure."
        )
    elif not first:
        reason = (
            "S1 decided none of the judged videos alone, so no tau can be compared with another."
        )
    elif not second:
        reason = "S2 decided none of the judged videos, so what it costs and how often it errs is unknown."
    tau, taus = _taus(session, now)
    return WhatIf(
        tau=max(tau, *taus) if taus else tau,
        decided=len(cases),
        by_s2=len(second),
        s2_right=sum(case.right for case in cases if not case.by_s1),
        needed=FEWEST,
        points=() if reason else _points(cases, float(np.median(second))),
        reason=reason,
    )


def _points(cases: list[_Case], usual_s2: float) -> tuple[Point, ...]:
    by_s1 = np.array([case.by_s1 for case in cases])
    right = np.array([case.right for case in cases])
    # What S2 decided stays with S2 at every stricter tau, as if S1 did not know the video.
    screening = Screening(
        confidence=np.array([case.confidence for case in cases]),
        predicted=np.zeros(len(cases), np.int64),
        right=right,
        familiar=by_s1,
    )
    s1 = np.array([case.s1_seconds for case in cases])
    s2 = np.array([usual_s2 if case.by_s1 else case.s2_seconds for case in cases])
    best, worst = (
        operating_points(screening, np.where(by_s1, guess, right), s1_cost=s1, s2_cost=s2)
        for guess in (True, False)
    )
    often = float(right[~by_s1].mean())
    whole = float((s1 + s2).sum()) / len(cases)
    points = []
    for good, bad in zip(best, worst, strict=True):
        stands = screening.stands(good.tau)
        points.append(
            Point(
                tau=good.tau,
                escalated=good.escalated,
                seconds=good.cost * whole,
                least=1 - good.accuracy,
                most=1 - bad.accuracy,
                guess=1 - bad.accuracy - often * (good.accuracy - bad.accuracy),
                alone=int(stands.sum()),
                wrong=int((stands & ~right).sum()),
            )
        )
    points.reverse()
    shown = np.linspace(0, len(points) - 1, min(len(points), _SHOWN)).round().astype(int)
    return tuple(points[i] for i in shown)


def _cases(session: Session, now: Deployment) -> Iterator[_Case]:
    same = select(Deployment.id).where(
        Deployment.bundle_sha256 == now.bundle_sha256,
        Deployment.policy_sha256 == now.policy_sha256,
        Deployment.tau.is_(None) if now.tau is None else Deployment.tau == now.tau,
    )
    last = (
        select(func.max(Decision.id))
        .join(Job, Job.id == Decision.job_id)
        .where(Job.deployment_id.in_(same))
        .group_by(Job.sha256)
    )
    rows = session.execute(
        select(Decision.labels, VerdictRow.document)
        .join(VerdictRow, VerdictRow.job_id == Decision.job_id)
        .where(Decision.id.in_(last), VerdictRow.flagged.is_not(None))
        .order_by(Decision.id.desc())
        .limit(MOST)
    ).all()
    for labels, document in rows:
        verdict = Verdict.from_json(document)
        if labels is None or verdict.confidence is None:
            continue
        s1 = sum(verdict.timing.get(stage, 0.0) for stage in _S1)
        yield _Case(
            confidence=verdict.confidence,
            by_s1=verdict.decided_by == "screen",
            right=verdict.label in (labels or [SAFE]),
            s1_seconds=s1,
            s2_seconds=sum(verdict.timing.values()) - s1,
        )


def _taus(session: Session, now: Deployment) -> tuple[float, list[float]]:
    from safelens.service.conclude import provenance

    found = provenance(session, now)
    return found.tau or 0.0, list((found.taus or {}).values())
