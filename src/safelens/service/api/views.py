"""From rows to what is answered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from safelens.service.api.models import DeploymentView, FrameView, JobSummary, JobView, time_of
from safelens.service.conclude import provenance
from safelens.service.context import Service
from safelens.service.keys import Caller
from safelens.service.problems import Problem
from safelens.service.tables import (
    BundleVersion,
    Decision,
    Deployment,
    Job,
    PolicyVersion,
    VerdictRow,
)
from safelens.verdict import Verdict


def own_job(session: Session, caller: Caller, job_id: str) -> Job:
    """A job that the caller may see: the own ones, or all for moderators.

    Raises:
        Problem: not_found, also for another's job.
    """
    job = session.get(Job, job_id)
    if job is None or not (job.key_id == caller.id or caller.may("moderator")):
        raise Problem("not_found", f"there is no job {job_id!r}")
    return job


def last_decision() -> Any:
    """The kind of a job's last decision, as a column of a selection of jobs."""
    return (
        select(Decision.kind)
        .where(Decision.job_id == Job.id)
        .order_by(Decision.id.desc())
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )


# Statements that stand here are built once; those of every request cost as much as what they ask.
_DECISION = select(last_decision()).where(Job.id == bindparam("job"))


def summary(
    job: Job, verdict: VerdictRow | None, decision: str | None, knows: str | None
) -> JobSummary:
    """A job in a list."""
    return JobSummary.model_validate(_summary(job, verdict, decision, knows))


def job_view(here: Service, session: Session, job: Job) -> JobView:
    """All of a job."""
    verdict = session.get(VerdictRow, job.id) if job.state == "done" else None
    decision = None
    if verdict is not None:
        decision = session.scalar(_DECISION, {"job": job.id})
    deployment = here.seen.get(job.deployment_id)
    if deployment is None:
        deployment = deployment_view(session, session.get_one(Deployment, job.deployment_id))
        here.seen[job.deployment_id] = deployment
    frames = [
        FrameView(
            time_s=f["time_s"], evidence=f["evidence"], url=f"/v1/jobs/{job.id}/frames/{number}"
        )
        for number, f in enumerate(verdict.frames if verdict else [])
    ]
    return JobView.model_validate(
        _summary(job, verdict, decision, deployment.knows)
        | {
            "url": job.url,
            "sha256": job.sha256,
            "size": job.size,
            "media_type": job.kind,
            "deployment": deployment,
            "verdict": None if verdict is None else Verdict.from_json(verdict.document),
            "reused_from": verdict.reused_from if verdict else None,
            "frames": frames,
        }
    )


def deployment_view(session: Session, row: Deployment) -> DeploymentView:
    """A deployment with the names of what it is made of."""
    bundle = session.get_one(BundleVersion, row.bundle_sha256)
    policy = session.get_one(PolicyVersion, row.policy_sha256)
    return DeploymentView(
        id=row.id,
        bundle=f"{bundle.name} {bundle.version}",
        bundle_sha256=bundle.sha256,
        policy=f"{policy.policy_id} {policy.version}",
        policy_sha256=policy.sha256,
        tau=bundle.tau if row.tau is None else row.tau,
        knows=bundle.knows,
        provenance=provenance(session, row),
        activated_at=time_of(row.activated_at),
        activated_by=row.activated_by,
    )


def _summary(
    job: Job, verdict: VerdictRow | None, decision: str | None, knows: str | None
) -> dict[str, Any]:
    keys = ("status", "flagged", "label", "decided_by", "risk", "uncertainty")
    return {
        "id": job.id,
        "state": job.state,
        "name": job.name,
        "reference": job.reference,
        "batch": job.batch_id,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        **{key: getattr(verdict, key) if verdict else None for key in keys},
        "decision": decision,
        "knows": knows,
    }
