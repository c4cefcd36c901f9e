"""`safelens serve`: the HTTP service on this machine.

Knows its arguments. The service is `safelens.service`; its operators' page is docs/service.md.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from safelens.cli._options import FAILED, fail
from safelens.cli._paths import UsageError
from safelens.cli._ray import (
    RAY_OPTIONS,
    Address,
    DeliberateActors,
    DeliberateCpus,
    DeliberateGpus,
    ScreenActors,
    ScreenCpus,
    ScreenGpus,
    pools,
)
from safelens.cli._service import needs_service


class ServeEngine(StrEnum):
    """Where the stages run."""

    local = "local"
    ray = "ray"


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    workers: Annotated[
        int, typer.Option(min=0, help="Model processes; 0 where they run on other machines.")
    ] = 1,
    web: Annotated[
        bool, typer.Option("--web/--no-web", help="Answer over HTTP, or run workers only.")
    ] = True,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of this machine.", show_default="safelens-data"),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Activate this name, directory or hub id.",
            show_default="what is active; at first, tiny",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="With --bundle: policy file or name.", show_default="the bundle's"),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.01, help="With --bundle.", show_default="the bundle's"),
    ] = None,
    engine: Annotated[
        ServeEngine,
        typer.Option(
            "--engine",
            help="Where S1 and S2 run. local: in the workers. ray: on a cluster, in replicas of their own, each as "
            "many as its queue needs; a worker then hands them videos.",
        ),
    ] = ServeEngine.local,
    ray_address: Address = None,
    screen_actors: ScreenActors = None,
    screen_cpus: ScreenCpus = None,
    screen_gpus: ScreenGpus = None,
    deliberate_actors: DeliberateActors = None,
    deliberate_cpus: DeliberateCpus = None,
    deliberate_gpus: DeliberateGpus = None,
    fetch_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host that URLs of videos may name; may be repeated.", show_default=False
        ),
    ] = None,
    callback_host: Annotated[
        list[str] | None,
        typer.Option(help="Host that webhooks may go to; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Moderate over HTTP: videos in, verdicts out, webhooks when they are there.

    All other settings come from the environment (docs/service.md). The database is a SQLite file unless
    DATABASE_URL names another.
    """
    if bundle is None and (policy is not None or tau is not None):
        fail("--policy and --tau go with --bundle")
    if not web and not workers:
        fail("--no-web --workers 0 leaves nothing to run")
    on_ray = _on_ray(locals(), workers)
    with needs_service():
        from pydantic import ValidationError
        from sqlalchemy.exc import SQLAlchemyError

        from safelens.bundle import BundleError
        from safelens.policy import PolicyError
        from safelens.service import logs
        from safelens.service.problems import Problem
        from safelens.service.settings import Settings
        from safelens.service.start import prepare
        from safelens.service.supervise import Supervisor
    chosen = {"data": data, "fetch_hosts": fetch_host, "callback_hosts": callback_host}
    given = {name: value for name, value in chosen.items() if value} | on_ray
    try:
        settings = Settings(**given)
        key_file = prepare(settings, bundle=bundle, policy=policy, tau=tau)
    except (ValidationError, BundleError, PolicyError, Problem) as error:
        fail(str(error))
    except (SQLAlchemyError, OSError, ImportError) as error:
        fail(f"the store cannot be used: {error}", FAILED)
    listen = _listen(host, port) if web else None
    if key_file is not None:
        typer.echo(f"admin's API key: {key_file}", err=True)
    if listen is not None:
        typer.echo(f"listening on http://{host}:{listen.getsockname()[1]}", err=True)
    logs.set_up()
    Supervisor(settings, listen, workers).run()


def _on_ray(given: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """The cluster's part of the settings."""
    names = [name for name in RAY_OPTIONS if name in given]
    if given["engine"] is ServeEngine.local:
        wrong = next((name for name in names if given[name] is not None), None)
        if wrong is not None:
            fail(f"--{wrong.replace('_', '-')} belongs to --engine ray")
        return {}
    with needs_service("service,ray"):
        import ray.serve  # noqa: F401
    from safelens.engine.cluster import has_address

    address = given["ray_address"]
    if workers > 1 and not has_address(address):
        fail("each worker would start a cluster of its own; name one with --ray-address")
    try:
        screen, deliberate = pools(given)
    except UsageError as error:
        fail(str(error))
    return {
        "engine": "ray",
        "ray_address": address or "",
        "screen": screen,
        "deliberate": deliberate,
    }


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        fail(f"cannot listen on {host}:{port} ({error.strerror or error})", FAILED)
