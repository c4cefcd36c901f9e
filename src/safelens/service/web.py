"""The web process: the application, its parts, and how errors are told."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from safelens import __version__
from safelens.service import logs
from safelens.service.api import jobs, keys, media, moderations, ops, review, versions
from safelens.service.chores import Chores
from safelens.service.console import audit, dashboard, queue, sign_in
from safelens.service.console import review as review_page
from safelens.service.console.page import on_problem
from safelens.service.console.session import PATH as CONSOLE
from safelens.service.context import Service
from safelens.service.doorbell import Bells
from safelens.service.middleware import Surroundings
from safelens.service.problems import CODES, MEDIA_TYPE, Problem, response
from safelens.service.settings import Settings
from safelens.service.supervise import LISTEN, end_with_parent

log = logging.getLogger(__name__)

_BY_STATUS = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_upload",
    413: "too_large",
}
_BACKLOG = 1024


def create_app(settings: Settings) -> FastAPI:
    """The application. Its database must be of this version (`Database.migrate`)."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        here = Service(settings, Bells.inherited())
        app.state.service = here
        chores = Chores(settings, here.database, here.media, here.bells)
        chores.start()
        rings, loop = here.bells.done, asyncio.get_running_loop()
        if rings is not None:
            loop.add_reader(rings, here.ended)
        yield
        if rings is not None:
            loop.remove_reader(rings)
        chores.stop()
        here.database.close()

    app = FastAPI(
        title="SafeLens",
        version=__version__,
        lifespan=lifespan,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        responses={"default": response(CODES)},
    )
    for part in (jobs, media, moderations, review, versions, keys, ops):
        app.include_router(part.router)
    for console in (sign_in, queue, review_page, audit, dashboard):
        app.include_router(console.router)
    app.mount(f"{CONSOLE}/static", StaticFiles(packages=[("safelens.service.console", "static")]))
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(DataError, _on_unstorable)
    app.add_exception_handler(Exception, _on_failure)
    app.add_middleware(
        Surroundings,
        upload_bytes=settings.max_upload_bytes,
        upload_s=settings.upload_s,
        idle_s=settings.upload_idle_s,
    )
    return app


def _answer(request: Request, problem: Problem) -> Response:
    if request.url.path.startswith(f"{CONSOLE}/"):
        return on_problem(request, problem)
    return JSONResponse(
        problem.document(),
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(request, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [
        {"field": ".".join(map(str, item["loc"])), "message": item["msg"]}
        for item in error.errors()
    ]
    return _answer(request, Problem("invalid", "the request is not as expected", problems=problems))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _BY_STATUS.get(error.status_code, "bad_request")
    return _answer(request, Problem(code, str(error.detail), headers=error.headers))


async def _on_unstorable(request: Request, _error: Exception) -> Response:
    # PostgreSQL's texts hold no zero character, and its integers have ends.
    return _answer(request, Problem("invalid", "a value cannot be stored; expected plain text"))


async def _on_failure(request: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return _answer(
        request, Problem("internal", "the service failed; its log says why. Try again later")
    )


def main() -> None:
    """Answer on the parent's socket until SIGTERM, or until the parent is gone."""
    logs.set_up()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen = socket.socket(fileno=int(os.environ[LISTEN]))
    config = uvicorn.Config(
        create_app(Settings()),
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )
    uvicorn.Server(config).run(sockets=[listen])


if __name__ == "__main__":
    main()
