"""`/v1/jobs` and `/v1/batches`: videos in, verdicts out."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ValidationError
from sqlalchemy import bindparam, func, select
from starlette.concurrency import run_in_threadpool

from safelens.service.addresses import Hosts, Refused
from safelens.service.api.listing import Filters, list_jobs
from safelens.service.api.models import (
    BatchView,
    JobList,
    JobView,
    NewBatch,
    Reference,
    Url,
    UrlJob,
    time_of,
)
from safelens.service.api.views import job_view, own_job
from safelens.service.context import Client, Here, Service
from safelens.service.fetch import name_of
from safelens.service.keys import Caller
from safelens.service.problems import Problem
from safelens.service.submit import Wanted, new_id
from safelens.service.tables import Batch, Job
from safelens.service.uploads import clean_name, receive

router = APIRouter(prefix="/v1", tags=["jobs"])

_MOST_JSON = 16_384
_ENDED = ("done", "cancelled")
_STATE = select(Job.state).where(Job.id == bindparam("job"))
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="Repeat a request without harm.")
]
_VIDEO = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": UrlJob.model_json_schema()},
            "multipart/form-data": _FORM,
            "application/octet-stream": _VIDEO,
        },
    }
}


def _known(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    said = "The idempotency key is known: what the first request with it made"
    return {200: {"model": model, "description": said}}


@router.post("/jobs", status_code=202, openapi_extra=_BODY, responses=_known(JobView))
async def create_job(
    request: Request,
    response: Response,
    here: Here,
    caller: Client,
    idempotency_key: IdempotencyKey = None,
    name: Annotated[str | None, Query(max_length=1024, description="Of the file.")] = None,
    reference: Annotated[Reference | None, Query()] = None,
    callback_url: Annotated[Url | None, Query()] = None,
    batch: Annotated[str | None, Query(max_length=64)] = None,
) -> JobView:
    """Have a video moderated: its bytes, a form with a part `file`, or JSON with a `url`.

    The query's parameters go with the first two. 200 in place of 202: the idempotency key is known.
    """
    if here.submissions.was_full:
        await run_in_threadpool(here.submissions.check_room)
    job_id = new_id("job")
    if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        asked = await _url_job(request)
        check_url(here.fetch_hosts, asked.url)
        wanted = Wanted(
            id=job_id,
            name=clean_name(asked.name or name_of(asked.url)),
            url=asked.url,
            reference=asked.reference,
            callback_url=asked.callback_url,
            batch=asked.batch,
        )
    else:
        here.settings.incoming.mkdir(parents=True, exist_ok=True)
        incoming = here.settings.incoming / job_id
        received, form_name = await receive(request, incoming, here.settings.max_upload_bytes)
        wanted = Wanted(
            id=job_id,
            name=clean_name(name or form_name),
            received=received,
            reference=reference,
            callback_url=callback_url,
            batch=batch,
        )
    view, replayed = await run_in_threadpool(_submit, here, caller, wanted, idempotency_key)
    response.status_code = 200 if replayed else 202
    response.headers["Location"] = f"/v1/jobs/{view.id}"
    return view


@router.get("/jobs")
def jobs(here: Here, caller: Client, filters: Annotated[Filters, Query()]) -> JobList:
    """The caller's jobs; all jobs for moderators."""
    with here.database.reading() as session:
        return list_jobs(session, caller, filters)


@router.get("/jobs/{job_id}")
async def job(
    here: Here,
    caller: Client,
    job_id: str,
    wait: Annotated[
        float, Query(ge=0, le=60, description="Seconds to wait for the job's end.")
    ] = 0.0,
) -> JobView:
    """A job, with its verdict when it is done."""
    return await until_ended(here, caller, job_id, wait)


@router.post("/jobs/{job_id}/cancel")
def cancel(here: Here, caller: Client, job_id: str) -> JobView:
    """End a job without a verdict. One that is done cannot be cancelled (409)."""
    with here.database.reading() as session:
        own_job(session, caller, job_id)
    here.submissions.cancel(job_id, caller.id)
    here.bells.ring_done(job_id)
    return job_view(here, caller, job_id)


@router.post("/batches", status_code=202, responses=_known(BatchView))
def create_batch(
    here: Here,
    caller: Client,
    response: Response,
    asked: NewBatch,
    idempotency_key: IdempotencyKey = None,
) -> BatchView:
    """Have several URLs moderated, all or none of them."""
    for item in asked.items:
        check_url(here.fetch_hosts, item.url)
    if asked.callback_url is not None:
        check_url(here.callback_hosts, asked.callback_url)
    wanted = [
        Wanted(
            id=new_id("job"),
            name=clean_name(item.name or name_of(item.url)),
            url=item.url,
            reference=item.reference,
            callback_url=asked.callback_url,
        )
        for item in asked.items
    ]
    batch_id, replayed = here.submissions.submit_batch(caller.id, wanted, idempotency_key)
    response.status_code = 200 if replayed else 202
    response.headers["Location"] = f"/v1/batches/{batch_id}"
    return _batch(here, caller, batch_id)


@router.get("/batches/{batch_id}")
def batch(here: Here, caller: Client, batch_id: str) -> BatchView:
    """A batch and its first thousand jobs; `/v1/jobs?batch=` has all."""
    return _batch(here, caller, batch_id)


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(here: Here, caller: Client, batch_id: str) -> BatchView:
    """Cancel all of its jobs that have no verdict yet."""
    _batch(here, caller, batch_id)
    with here.database.reading() as session:
        still = (Job.batch_id == batch_id) & Job.state.in_(("fetching", "queued", "running"))
        ids = list(session.scalars(select(Job.id).where(still)))
    for job_id in ids:
        try:
            here.submissions.cancel(job_id, caller.id)
        except Problem:  # it was done meanwhile
            continue
        here.bells.ring_done(job_id)
    return _batch(here, caller, batch_id)


async def until_ended(here: Service, caller: Caller, job_id: str, seconds: float) -> JobView:
    """A job at its end, or as it is when the time is over. Raises Problem (not_found)."""

    def ended() -> bool:
        row = here.database.row(_STATE, job=job_id)
        return row is not None and row.state in _ENDED

    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    view = await run_in_threadpool(job_view, here, caller, job_id)
    while view.state not in _ENDED and (left := until - loop.time()) > 0:
        await here.wait(job_id, left, lambda: run_in_threadpool(ended))
        view = await run_in_threadpool(job_view, here, caller, job_id)
    return view


def check_url(hosts: Hosts, url: str) -> None:
    """Refuse at once what would be refused later. Raises Problem (url_refused)."""
    try:
        hosts.check(url)
    except Refused as error:
        raise Problem("url_refused", str(error)) from error


async def _url_job(request: Request) -> UrlJob:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_JSON:
            raise Problem("too_large", f"more than {_MOST_JSON} bytes of JSON")
    try:
        return UrlJob.model_validate_json(bytes(body))
    except ValidationError as error:
        problems = [
            {"field": ".".join(map(str, item["loc"])), "message": item["msg"]}
            for item in error.errors()
        ]
        raise Problem("invalid", "the JSON is not as expected", problems=problems) from error


def _submit(
    here: Service, caller: Caller, wanted: Wanted, idempotency_key: str | None
) -> tuple[JobView, bool]:
    received, media = wanted.received, f"videos/{wanted.id}"
    replayed, accepted = False, False
    try:
        if wanted.callback_url is not None:
            check_url(here.callback_hosts, wanted.callback_url)
        if received is not None:
            here.media.take(received.path, media)
        job_id, replayed = here.submissions.submit(caller.id, wanted, idempotency_key)
        accepted = not replayed
    finally:
        if received is not None and not accepted:
            received.path.unlink(missing_ok=True)
            here.media.delete(media)
    if accepted:
        here.bells.ring_work()
    return job_view(here, caller, job_id), replayed


def _batch(here: Service, caller: Caller, batch_id: str) -> BatchView:
    with here.database.reading() as session:
        row = session.get(Batch, batch_id)
        if row is None or not (row.key_id == caller.id or caller.may("moderator")):
            raise Problem("not_found", f"there is no batch {batch_id!r}")
        counted = session.execute(
            select(Job.state, func.count()).where(Job.batch_id == batch_id).group_by(Job.state)
        ).all()
        states: dict[Any, int] = {state: number for state, number in counted}
        found = list_jobs(session, caller, Filters(batch=batch_id, limit=1000))
        return BatchView(
            id=row.id, created_at=time_of(row.created_at), states=states, jobs=found.jobs
        )
