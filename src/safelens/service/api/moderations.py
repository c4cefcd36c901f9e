"""`/v1/moderations`: OpenAI's shape, for clients that speak it already.

What is not decided has no place in that shape, whose `flagged` knows true and false: it is an error here, so
that no client takes it for safe.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from safelens.service.api.jobs import check_url, until_ended
from safelens.service.api.models import JobView
from safelens.service.context import Client, Here, Service
from safelens.service.fetch import name_of
from safelens.service.keys import Caller
from safelens.service.problems import Problem, documented
from safelens.service.sink import FileSink, SinkError
from safelens.service.submit import Wanted, new_id
from safelens.service.uploads import clean_name
from safelens.verdict import Verdict

router = APIRouter(prefix="/v1", tags=["moderations"])

_LONGEST_S = 60.0
_MOST_INPUTS = 32


class Address(BaseModel):
    """Where a video is: http(s), or a `data:` URL with base64."""

    url: str


class VideoInput(BaseModel):
    """A video."""

    type: Literal["video_url"]
    video_url: Address


class ImageInput(BaseModel):
    """A moving picture, such as a GIF."""

    type: Literal["image_url"]
    image_url: Address


class TextInput(BaseModel):
    """Text, which is not moderated here."""

    type: Literal["text"]
    text: str


Input = Annotated[VideoInput | ImageInput | TextInput, Field(discriminator="type")]


class ModerationRequest(BaseModel):
    """OpenAI's request. Whatever `model` says, the active deployment moderates."""

    model_config = ConfigDict(extra="ignore")

    input: str | Annotated[list[str | Input], Field(min_length=1, max_length=_MOST_INPUTS)]
    model: str | None = None


class Result(BaseModel):
    """OpenAI's result, and what SafeLens knows beyond it."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]
    safelens: Annotated[
        dict[str, Any], Field(description="job, label, confidence, decided_by, knows.")
    ]


class ModerationResponse(BaseModel):
    """OpenAI's response."""

    id: str
    model: str
    results: list[Result]


@router.post("/moderations", responses=documented("too_slow"))
async def moderate(here: Here, caller: Client, asked: ModerationRequest) -> ModerationResponse:
    """Moderate videos and wait for it, at most a minute; the jobs go on where that is not enough (504)."""
    given = asked.input if isinstance(asked.input, list) else [asked.input]
    urls = [_url(one) for one in given]
    for url in urls:
        if not url.startswith("data:"):
            check_url(here.fetch_hosts, url)
    jobs = [await run_in_threadpool(_submit, here, caller, url) for url in urls]
    here.bells.ring_work()
    until = asyncio.get_running_loop().time() + _LONGEST_S
    views = []
    for job in jobs:
        left = until - asyncio.get_running_loop().time()
        views.append(await until_ended(here, caller, job, left))
    late = [view.id for view in views if view.verdict is None]
    if late:
        raise Problem(
            "too_slow", "not all is decided yet; ask for the jobs", jobs=[v.id for v in views]
        )
    undecided = [_why(view) for view in views if view.flagged is None]
    if undecided:
        raise Problem(
            "undecided",
            "; ".join(undecided),
            jobs=[view.id for view in views],
            knows=views[0].knows,
        )
    return ModerationResponse(
        id=f"modr-{views[0].id}",
        model=views[0].deployment.bundle,
        results=[_result(view) for view in views],
    )


def _url(given: str | VideoInput | ImageInput | TextInput) -> str:
    if isinstance(given, VideoInput):
        return given.video_url.url
    if isinstance(given, ImageInput):
        return given.image_url.url
    url = given if isinstance(given, str) else ""
    if not url.startswith(("http://", "https://", "data:")):
        raise Problem("invalid", "text is not moderated here; expected the URL of a video")
    return url


def _submit(here: Service, caller: Caller, url: str) -> str:
    job_id = new_id("job")
    if not url.startswith("data:"):
        wanted = Wanted(id=job_id, name=clean_name(name_of(url)), url=url)
        return here.submissions.submit(caller.id, wanted, None)[0]
    kind, _, text = url.partition(",")
    try:
        if not kind.endswith(";base64"):
            raise ValueError("expected base64")
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise Problem("invalid", f"a data: URL that cannot be read ({error})") from error
    path = here.settings.incoming / job_id
    try:
        with FileSink(path, here.settings.max_upload_bytes) as sink:
            sink.write(data)
            received = sink.finish()
    except SinkError as error:
        raise Problem(error.code, str(error)) from error
    media, accepted = f"videos/{job_id}", False
    here.media.take(received.path, media)
    try:
        wanted = Wanted(id=job_id, name="video", received=received)
        here.submissions.submit(caller.id, wanted, None)
        accepted = True
    finally:
        if not accepted:
            here.media.delete(media)
    return job_id


def _why(view: JobView) -> str:
    error = view.verdict.error if view.verdict else None
    return f"{view.id}: {view.status}: {error.message if error else 'nothing was decided'}"


def _result(view: JobView) -> Result:
    verdict = view.verdict
    assert isinstance(verdict, Verdict)
    assert verdict.flagged is not None
    return Result(
        flagged=verdict.flagged,
        categories={c.id: bool(c.flagged) for c in verdict.categories},
        category_scores={c.id: c.score for c in verdict.categories},
        category_applied_input_types={c.id: ["video"] for c in verdict.categories},
        safelens={
            "job": view.id,
            "label": verdict.label,
            "confidence": verdict.confidence,
            "decided_by": verdict.decided_by,
            "knows": view.knows,
        },
    )
