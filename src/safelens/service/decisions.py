"""Moderators' decisions: which go with which verdict. The last one of a job counts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy.orm import Session

from safelens.policy import Policy
from safelens.service.audit import record
from safelens.service.problems import Problem
from safelens.service.tables import Decision, Deployment, Job, PolicyVersion, VerdictRow
from safelens.verdict import Verdict


def decide(
    session: Session,
    job: Job,
    actor: str,
    kind: str,
    labels: Sequence[str] | None,
    note: str | None,
) -> Decision:
    """Write a decision, and its entry in the audit log.

    Args:
        session: the transaction.
        job: with a verdict.
        actor: id of the moderator's key.
        kind: confirm, overturn or escalate.
        labels: with overturn, ids of the categories that the video violates; empty for safe.
        note: for other people.

    Raises:
        Problem: conflict if there is no verdict, or nothing decided to confirm; invalid for wrong labels.
    """
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
