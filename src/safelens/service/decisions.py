"""Moderators' decisions: which go with which verdict. The last one of a job counts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from safelens.policy import Policy
from safelens.service import claims
from safelens.service.audit import record
from safelens.service.problems import Problem
from safelens.service.tables import ApiKey, Decision, Deployment, Job, PolicyVersion, VerdictRow
from safelens.verdict import Verdict


def decide(
    session: Session,
    job: Job,
    actor: str,
    kind: str,
    labels: Sequence[str] | None,
    note: str | None,
    *,
    seen: int | None = None,
) -> Decision:
    """Write a decision, and its entry in the audit log.

    Args:
        session: the transaction.
        job: with a verdict.
        actor: id of the moderator's key.
        kind: confirm, overturn or escalate.
        labels: with overturn, ids of the categories that the video violates; empty for safe.
        note: for other people.
        seen: number of the last decision that the moderator knows of, 0 for none; None asks for no check.

    Raises:
        Problem: conflict if there is no verdict, nothing decided to confirm, or a decision that was not seen;
            invalid for wrong labels.
    """
    session.execute(select(Job.id).where(Job.id == job.id).with_for_update())
    if seen is not None:
        _check_seen(session, job, seen)
    verdict = session.get(VerdictRow, job.id)
    if verdict is None:
        raise Problem("conflict", f"{job.id} has no verdict; its state is {job.state}")
    if kind == "overturn":
        held = _checked(session, job, labels)
    elif labels is not None:
        raise Problem("invalid", f"labels go with overturn; expected none with {kind}")
    elif kind == "confirm":
        if verdict.flagged is None:
            raise Problem(
                "conflict",
                f"the verdict on {job.id} decided nothing ({verdict.status}), so there is nothing to "
                "confirm; overturn it with the true labels, or escalate it",
            )
        categories = Verdict.from_json(verdict.document).categories
        held = [category.id for category in categories if category.flagged]
    else:
        held = None
    row = Decision(job_id=job.id, key_id=actor, kind=kind, labels=held, note=note, at=time.time())
    session.add(row)
    session.flush()
    claims.end(session, job.id)
    record(
        session,
        actor,
        f"decision.{kind}",
        job.id,
        decision=row.id,
        labels=held,
        note=note,
        verdict={"status": verdict.status, "flagged": verdict.flagged, "label": verdict.label},
        deployment=job.deployment_id,
    )
    return row


def _check_seen(session: Session, job: Job, seen: int) -> None:
    last = session.execute(
        select(Decision.id, Decision.kind, ApiKey.name)
        .join(ApiKey, ApiKey.id == Decision.key_id)
        .where(Decision.job_id == job.id)
        .order_by(Decision.id.desc())
        .limit(1)
    ).first()
    if last is not None and last.id != seen:
        raise Problem(
            "conflict",
            f"{last.name} has decided on this video meanwhile ({last.kind}), and your decision was not "
            "written; look at it again, and decide anew if you disagree",
        )


def _checked(session: Session, job: Job, labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        raise Problem("invalid", "overturn needs labels: category ids, or an empty list for safe")
    deployment = session.get_one(Deployment, job.deployment_id)
    row = session.get_one(PolicyVersion, deployment.policy_sha256)
    known = Policy.from_yaml(row.yaml).labels[:-1]
    wrong = [label for label in labels if label not in known]
    if wrong or len(set(labels)) != len(labels):
        raise Problem("invalid", f"labels {list(labels)}; expected different ones of {list(known)}")
    return list(labels)
