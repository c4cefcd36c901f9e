"""`/v1/jobs/{id}/media` and `/frames`: pictures for people."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from safelens.service.api.views import own_job
from safelens.service.context import Client, Here
from safelens.service.problems import Problem
from safelens.service.tables import VerdictRow

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_CACHE = {"Cache-Control": "private, max-age=3600"}


@router.get(
    "/media",
    response_class=StreamingResponse,
    responses={200: {"content": {"video/*": {}}}, 206: {"content": {"video/*": {}}}},
)
def media(
    here: Here,
    caller: Client,
    job_id: str,
    wanted: Annotated[str | None, Header(alias="Range", max_length=64)] = None,
) -> StreamingResponse:
    """The video as it was sent; a range of it, if asked for."""
    with here.database.reading() as session:
        job = own_job(session, caller, job_id)
    if job.media is None:
        raise Problem("not_found", f"the video of {job_id} is not kept (any more)")
    try:
        size = here.media.size(job.media)
    except FileNotFoundError:
        raise Problem("not_found", f"the video of {job_id} is not kept any more") from None
    start, end, status = 0, size, 200
    headers = {"Accept-Ranges": "bytes", "Content-Disposition": "attachment", **_CACHE}
    found = _RANGE.fullmatch(wanted or "")
    if found and int(found[1]) < size:
        start, status = int(found[1]), 206
        end = min(size, int(found[2]) + 1) if found[2] else size
        headers["Content-Range"] = f"bytes {start}-{max(start, end - 1)}/{size}"
    headers["Content-Length"] = str(max(0, end - start))
    return StreamingResponse(
        here.media.stream(job.media, start, end),
        status_code=status,
        media_type=job.kind,
        headers=headers,
    )


@router.get(
    "/frames/{number}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
def frame(here: Here, caller: Client, job_id: str, number: int) -> Response:
    """A frame that was looked at, as JPEG."""
    with here.database.reading() as session:
        own_job(session, caller, job_id)
        verdict = session.get(VerdictRow, job_id)
    frames = verdict.frames if verdict is not None else []
    if verdict is None or verdict.frames_media is None or not 0 <= number < len(frames):
        raise Problem("not_found", f"{job_id} has {len(frames)} frames, and none {number}")
    start = frames[number]["start"]
    data = here.media.read(verdict.frames_media, start, start + frames[number]["bytes"])
    return Response(data, media_type="image/jpeg", headers=_CACHE)
