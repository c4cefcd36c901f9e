"""What the routes of one web process share, and who may use them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from safelens.service.addresses import Hosts
from safelens.service.console.session import Sessions, secret
from safelens.service.database import Database
from safelens.service.deployments import Deployments
from safelens.service.doorbell import Bells
from safelens.service.keys import Caller, Keys, Role
from safelens.service.media import MediaStore
from safelens.service.problems import Problem
from safelens.service.rate import RateLimit
from safelens.service.settings import Settings
from safelens.service.submit import Submissions

if TYPE_CHECKING:
    from safelens.service.api.models import DeploymentView

_LOOK_S = 0.5


@dataclass
class Service:
    """One web process's parts.

    Attributes:
        fetch_hosts: that jobs' URLs may name.
        callback_hosts: that webhooks may go to.
    """

    settings: Settings
    bells: Bells
    database: Database = field(init=False)
    media: MediaStore = field(init=False)
    keys: Keys = field(init=False)
    sessions: Sessions = field(init=False)
    submissions: Submissions = field(init=False)
    deployments: Deployments = field(init=False)
    fetch_hosts: Hosts = field(init=False)
    callback_hosts: Hosts = field(init=False)
    seen: dict[int, DeploymentView] = field(default_factory=dict)
    """Deployments as they are answered, by number: they never change."""
    _waiting: dict[str, set[asyncio.Event]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.settings
        self.database = Database(settings.database_url)
        self.media = MediaStore(settings.media_url)
        self.keys = Keys(self.database)
        self.sessions = Sessions(secret(settings))
        self.submissions = Submissions(self.database, settings.max_queue)
        self.deployments = Deployments(self.database, self.media, settings.bundles)
        internal = settings.internal_hosts
        self.fetch_hosts = Hosts(settings.fetch_hosts, internal, "SAFELENS_FETCH_HOSTS")
        self.callback_hosts = Hosts(settings.callback_hosts, internal, "SAFELENS_CALLBACK_HOSTS")
        self._rate = RateLimit(settings.requests_per_minute)

    def count(self, caller: Caller) -> None:
        """Count a request. Raises Problem (rate_limited)."""
        if pause_s := self._rate.hit(caller.id):
            raise Problem(
                "rate_limited",
                f"more than {self.settings.requests_per_minute} requests a minute with this key",
                headers={"Retry-After": str(math.ceil(pause_s))},
            )

    def ended(self) -> None:
        """Wake who waits for jobs that ended."""
        for job in self.bells.ended():
            for event in self._waiting.get(job, ()):
                event.set()

    async def wait(self, job: str, seconds: float, over: Callable[[], Awaitable[bool]]) -> None:
        """Until the job's bell rings, or `over` says so, which is asked now and then, or the time is over."""
        event = asyncio.Event()
        self._waiting.setdefault(job, set()).add(event)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        try:
            while not await over() and (left := until - loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(left, _LOOK_S))
                    return
        finally:
            self._waiting[job].discard(event)
            if not self._waiting[job]:
                del self._waiting[job]


async def service(request: Request) -> Service:
    """This process's parts. Asynchronous, since FastAPI would give what is not to a thread."""
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


Here = Annotated[Service, Depends(service)]
_bearer = HTTPBearer(auto_error=False, description="An API key: `slk_...`")


def _require(role: Role) -> Callable[..., Awaitable[Caller]]:
    async def require(
        request: Request,
        here: Here,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Caller:
        caller = None
        if given is not None:
            caller = await run_in_threadpool(here.keys.caller, given.credentials)
        if caller is None:
            raise Problem(
                "unauthorized",
                "expected `Authorization: Bearer slk_...` with a key that is valid and not revoked",
                headers={"WWW-Authenticate": "Bearer"},
            )
        request.state.key = caller.id
        here.count(caller)
        if not caller.may(role):
            raise Problem("forbidden", f"this needs the role {role}; the key's is {caller.role}")
        return caller

    return require


Client = Annotated[Caller, Depends(_require("client"))]
Moderator = Annotated[Caller, Depends(_require("moderator"))]
Admin = Annotated[Caller, Depends(_require("admin"))]
