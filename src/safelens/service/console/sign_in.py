"""`/console/sign-in`: an API key for a session."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from safelens.service.audit import record
from safelens.service.console.access import SignedIn, form
from safelens.service.console.page import page
from safelens.service.console.session import PATH, Session
from safelens.service.context import Here, Service
from safelens.service.keys import Caller

router = APIRouter(prefix=PATH, include_in_schema=False)

_HOME = f"{PATH}/queue"


@router.get("")
@router.get("/")
def home() -> Response:
    """The queue."""
    return RedirectResponse(_HOME, 303)


@router.get("/sign-in")
def sign_in_page(
    request: Request, here: Here, to: Annotated[str, Query(max_length=2000)] = _HOME
) -> Response:
    """The form. It too has a session, for its token."""
    session = here.sessions.of(request) or Session()
    answer = page(request, "sign_in", None, token=session.token, to=to, wrong=None)
    here.sessions.keep(session, request, answer)
    return answer


@router.post("/sign-in")
async def sign_in(request: Request, here: Here) -> Response:
    """Check the key and begin a session; a new token goes with it."""
    before = here.sessions.of(request)
    fields = await form(request, before)
    assert before is not None
    to = fields.get("to", [_HOME])[0]
    caller = await run_in_threadpool(here.keys.caller, fields.get("key", [""])[0].strip())
    if caller is None or not caller.may("moderator"):
        wrong = (
            "This key is not valid, or it is revoked."
            if caller is None
            else f"This key's role is {caller.role}; the console needs moderator or admin."
        )
        return page(request, "sign_in", None, status=403, token=before.token, to=to, wrong=wrong)
    await run_in_threadpool(_note, here, caller, "console.sign_in")
    answer = RedirectResponse(to if _own(to) else _HOME, 303)
    here.sessions.keep(Session(caller.id), request, answer)
    return answer


@router.post("/sign-out")
async def sign_out(request: Request, here: Here, visitor: SignedIn) -> Response:
    """End the session in this browser."""
    await form(request, visitor.session)
    await run_in_threadpool(_note, here, visitor.caller, "console.sign_out")
    answer = RedirectResponse(f"{PATH}/sign-in", 303)
    here.sessions.end(answer)
    return answer


def _note(here: Service, caller: Caller, action: str) -> None:
    with here.database.writing() as session:
        record(session, caller.id, action, caller.id)


def _own(address: str) -> bool:
    return address.startswith(f"{PATH}/") and address.isprintable() and "\\" not in address
