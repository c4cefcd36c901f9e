"""`/console/review/{job}`: one video, its verdict, and what a person decides about it."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from safelens.policy import Policy
from safelens.service.api import media
from safelens.service.api.listing import list_jobs, position
from safelens.service.api.models import JobView, NewDecision
from safelens.service.api.views import job_view, own_job
from safelens.service.claims import take
from safelens.service.console.access import SignedIn, Visitor, form
from safelens.service.console.page import page
from safelens.service.console.queue import QueueFilters, last_act
from safelens.service.console.session import PATH
from safelens.service.context import Here, Service
from safelens.service.decisions import decide
from safelens.service.problems import Problem
from safelens.service.tables import ApiKey, Decision, Job, PolicyVersion, VerdictRow

router = APIRouter(prefix=PATH, include_in_schema=False)


@router.get("/review/{job_id}")
def review(
    request: Request,
    here: Here,
    visitor: SignedIn,
    job_id: str,
    filters: Annotated[QueueFilters, Query()],
) -> Response:
    """The page; `filters` are those of the list that one came from. Whoever opens it has the video open."""
    with here.database.reading() as session:
        mine = own_job(session, visitor.caller, job_id)
    claim = take(here.database, mine.id, visitor.caller.id) if mine.state == "done" else None
    job = job_view(here, visitor.caller, job_id)
    with here.database.reading() as session:
        row = session.get_one(Job, job_id)
        version = session.get_one(PolicyVersion, job.deployment.policy_sha256)
        history = session.execute(
            select(Decision, ApiKey.name)
            .join(ApiKey, ApiKey.id == Decision.key_id)
            .where(Decision.job_id == job_id)
            .order_by(Decision.id.desc())
        ).all()
        return page(
            request,
            "review",
            visitor,
            job=job,
            v=job.verdict,
            kept=row.media is not None,
            policy=Policy.from_yaml(version.yaml),
            length_s=_length(job),
            history=history,
            claim=claim,
            filters=filters,
            following=_following(session, visitor, filters, row),
            knows=[job.knows] if job.knows else [],
            decided=last_act(session, filters.decided),
        )


@router.post("/review/{job_id}/decision")
async def decide_here(
    request: Request,
    here: Here,
    visitor: SignedIn,
    job_id: str,
    filters: Annotated[QueueFilters, Query()],
) -> Response:
    """Write a decision and go on with the list."""
    fields = await form(request, visitor.session)
    kind = fields.get("kind", [""])[0]
    try:
        asked = NewDecision(
            kind=cast(Any, kind),
            labels=_labels(fields.get("label", [])) if kind == "overturn" else None,
            note=fields.get("note", [""])[0].strip() or None,
            seen=cast(Any, fields.get("seen", ["0"])[0]),
        )
    except ValidationError as error:
        raise Problem(
            "invalid", "expected confirm, overturn or escalate, and a short note"
        ) from error
    return await run_in_threadpool(_decided, here, visitor, job_id, asked, filters)


@router.get("/media/{job_id}")
def video(
    here: Here,
    visitor: SignedIn,
    job_id: str,
    wanted: Annotated[str | None, Header(alias="Range", max_length=64)] = None,
) -> StreamingResponse:
    """The video, by ranges."""
    return media.media(here, visitor.caller, job_id, wanted)


@router.get("/media/{job_id}/frames/{number}")
def frame(here: Here, visitor: SignedIn, job_id: str, number: int) -> Response:
    """A frame that was looked at."""
    return media.frame(here, visitor.caller, job_id, number)


def _labels(chosen: list[str]) -> list[str]:
    if not chosen:
        raise Problem("invalid", "overturning needs what is true: categories, or that it is safe")
    return [] if chosen == ["safe"] else chosen


def _decided(
    here: Service, visitor: Visitor, job_id: str, asked: NewDecision, filters: QueueFilters
) -> Response:
    with here.database.writing() as session:
        job = own_job(session, visitor.caller, job_id)
        decide(
            session,
            job,
            visitor.caller.id,
            asked.kind,
            asked.labels,
            asked.note,
            seen=asked.seen,
        )
        following = _following(session, visitor, filters, job)
    place = f"review/{following}" if following else "queue"
    return RedirectResponse(f"{PATH}/{place}?{filters.query(decided=job_id)}", 303)


def _following(session: Session, visitor: Visitor, filters: QueueFilters, job: Job) -> str | None:
    """The job after this one in the list."""
    verdict = session.get(VerdictRow, job.id)
    if verdict is None and filters.order != "newest":
        return None
    after = position(job, verdict, filters.order)
    one = filters.model_copy(update={"after": after, "limit": 1})
    found = list_jobs(session, visitor.caller, one, free=filters.free).jobs
    return found[0].id if found else None


def _length(job: JobView) -> float:
    """Seconds that the time line spans, of what is known of the video."""
    known = [frame.time_s for frame in job.frames]
    if job.verdict is not None:
        known += [part.end_s for part in job.verdict.evidence]
        known += [caption.time_s for caption in job.verdict.captions]
    return max(known, default=0.0)
