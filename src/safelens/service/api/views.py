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
    JOBS,
    VERDICTS,
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
    if job is None or not _may_see(caller, job.key_id):
        raise _unknown(job_id)
    return job


def _may_see(caller: Caller, owner: str) -> bool:
    return owner == caller.id or caller.may("moderator")


def _unknown(job_id: str) -> Problem:
    return Problem("not_found", f"there is no job {job_id!r}")


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


_DECIDED = ("status", "flagged", "label", "decided_by", "risk", "uncertainty")
# Statements that stand here are built once; those of every request cost as much as what they ask.
_ALL = (
    select(
        *(JOBS.c[name] for name in ("id", "key_id", "state", "name", "reference", "batch_id")),
        *(JOBS.c[name] for name in ("created_at", "finished_at", "url", "sha256", "size", "kind")),
        JOBS.c.deployment_id,
        *(VERDICTS.c[name] for name in ("document", "reused_from", "frames")),
        *(VERDICTS.c[name] for name in _DECIDED),
        last_decision().label("decision"),
    )
    .select_from(JOBS.outerjoin(VERDICTS))
    .where(JOBS.c.id == bindparam("job"))
)


def summary(
    job: Job, verdict: VerdictRow | None, decision: str | None, knows: str | None
) -> JobSummary:
    """A job in a list."""
    return JobSummary.model_validate(_summary(job, verdict, decision, knows))


def job_view(here: Service, caller: Caller, job_id: str) -> JobView:
    """All of a job that the caller may see. Raises Problem (not_found)."""
    job = here.database.row(_ALL, job=job_id)
    if job is None or not _may_see(caller, job.key_id):
        raise _unknown(job_id)
    deployment = here.seen.get(job.deployment_id)
    if deployment is None:
        with here.database.reading() as session:
            deployment = deployment_view(session, session.get_one(Deployment, job.deployment_id))
        here.seen[job.deployment_id] = deployment
    frames = [
        FrameView(
            time_s=f["time_s"], evidence=f["evidence"], url=f"/v1/jobs/{job.id}/frames/{number}"
        )
        for number, f in enumerate(job.frames or [])
    ]
    return JobView.model_validate(
        _summary(job, job, job.decision, deployment.knows)
        | {
            "url": job.url,
            "sha256": job.sha256,
            "size": job.size,
            "media_type": job.kind,
            "deployment": deployment,
            "verdict": None if job.document is None else Verdict.from_json(job.document),
            "reused_from": job.reused_from,
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


def _summary(job: Any, verdict: Any, decision: str | None, knows: str | None) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "name": job.name,
        "reference": job.reference,
        "batch": job.batch_id,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        **{key: getattr(verdict, key) if verdict else None for key in _DECIDED},
        "decision": decision,
        "knows": knows,
    }
