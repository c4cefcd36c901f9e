"""Moderators' decisions, the audit log, and decisions as training records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from safelens.policy import Policy
from safelens.service.api.models import AuditPage, AuditView, DecisionView, NewDecision
from safelens.service.api.views import own_job
from safelens.service.context import Here, Moderator
from safelens.service.decisions import decide
from safelens.service.deployments import active
from safelens.service.feedback import records
from safelens.service.problems import Problem
from safelens.service.tables import AuditEntry, Decision, PolicyVersion

router = APIRouter(prefix="/v1", tags=["review"])


@router.post("/jobs/{job_id}/decisions", status_code=201)
def add_decision(here: Here, caller: Moderator, job_id: str, asked: NewDecision) -> DecisionView:
    """Confirm a verdict, overturn it with the true labels, or leave it to others."""
    with here.database.writing() as session:
        job = own_job(session, caller, job_id)
        row = decide(session, job, caller.id, asked.kind, asked.labels, asked.note, seen=asked.seen)
        return DecisionView.model_validate(row)


@router.get("/jobs/{job_id}/decisions")
def job_decisions(here: Here, caller: Moderator, job_id: str) -> list[DecisionView]:
    """All decisions on a job, oldest first; the last one counts."""
    with here.database.reading() as session:
        own_job(session, caller, job_id)
        rows = session.scalars(
            select(Decision).where(Decision.job_id == job_id).order_by(Decision.id)
        )
        return [DecisionView.model_validate(row) for row in rows]


@router.get("/audit")
def audit(
    here: Here,
    caller: Moderator,
    subject: Annotated[str | None, Query(max_length=128)] = None,
    actor: Annotated[str | None, Query(max_length=64)] = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    before: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    """Who did what, newest first."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit + 1)
    for column, value in (
        (AuditEntry.subject, subject),
        (AuditEntry.actor, actor),
        (AuditEntry.action, action),
    ):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    with here.database.reading() as session:
        rows = list(session.scalars(query))
    page = rows[:limit]
    following = page[-1].id if len(rows) > limit else None
    return AuditPage(entries=[AuditView.model_validate(row) for row in page], next=following)


@router.get(
    "/records",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}}},
)
def training_records(
    here: Here,
    caller: Moderator,
    policy: Annotated[
        str | None, Query(max_length=64, description="SHA-256; the active deployment's by default.")
    ] = None,
) -> StreamingResponse:
    """Decisions under a policy as records, one a line; `video` is `videos/` and the job's id."""
    with here.database.reading() as session:
        row = session.get(PolicyVersion, policy or active(session).policy_sha256)
    if row is None:
        raise Problem("not_found", f"there is no policy {policy!r}")
    used = Policy.from_yaml(row.yaml)

    def lines() -> Iterator[str]:
        for record in records(here.database, used):
            yield record.to_json() + "\n"

    return StreamingResponse(lines(), media_type="application/jsonl")
