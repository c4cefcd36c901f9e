"""Who may see a page or send a form of the console.

Knows sessions and roles. A form counts only with the token of its own session: another site can make a browser
send the cookie's request, but cannot read the token.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from safelens.service.console.session import Session
from safelens.service.context import Here
from safelens.service.keys import Caller, caller_of
from safelens.service.problems import Problem

_MOST_FORM = 32_768


@dataclass(frozen=True)
class Visitor:
    """A moderator who has signed in.

    Attributes:
        caller: the API key.
        name: whose key it is.
        session: the visit.
    """

    caller: Caller
    name: str
    session: Session


async def _visitor(request: Request, here: Here) -> Visitor:
    session = here.sessions.of(request)
    row = None
    if session is not None and session.key is not None:
        row = await run_in_threadpool(here.keys.holder, session.key)
    if session is None or row is None:
        raise Problem("unauthorized", "sign in to the console first")
    caller = caller_of(row.id, row.role)
    request.state.key = caller.id
    if not caller.may("moderator"):
        raise Problem("forbidden", f"the console needs the role moderator; the key's is {row.role}")
    return Visitor(caller, row.name, session)


SignedIn = Annotated[Visitor, Depends(_visitor)]


async def form(request: Request, session: Session | None) -> dict[str, list[str]]:
    """The fields of a form that this session's own page has sent.

    Raises:
        Problem: cross_site without the session's token; bad_request where it is no form.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_FORM:
            raise Problem("too_large", f"more than {_MOST_FORM} bytes of form")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=200)
    except ValueError as error:
        raise Problem("bad_request", "the body is no form") from error
    token = fields.pop("token", [""])[0]
    if session is None or not hmac.compare_digest(token.encode(), session.token.encode()):
        raise Problem("cross_site", "the form's token is not this session's; reload the page")
    return fields
