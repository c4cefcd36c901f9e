"""`/v1/policies`, `/v1/bundles`, `/v1/deployments`: what moderates, now and earlier."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from safelens.policy import MAX_BYTES
from safelens.service.api.models import (
    BundleView,
    DeploymentView,
    NewDeployment,
    PolicyText,
    PolicyView,
)
from safelens.service.api.views import deployment_view
from safelens.service.context import Admin, Client, Here
from safelens.service.deployments import active
from safelens.service.problems import Problem
from safelens.service.tables import BundleVersion, Deployment, PolicyVersion

router = APIRouter(prefix="/v1", tags=["versions"])

_LISTED = 1000


def _body(kind: str) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


@router.post("/policies", status_code=201, openapi_extra=_body("application/yaml"))
async def add_policy(request: Request, here: Here, caller: Admin) -> PolicyView:
    """Check and keep a policy file; the same content is the same version."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise Problem("too_large", f"more than {MAX_BYTES} bytes; no policy is so long")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem("invalid", f"not UTF-8 ({error.reason} at byte {error.start})") from error
    row = await run_in_threadpool(here.deployments.add_policy, text, caller.id)
    return PolicyView.model_validate(row)


@router.get("/policies")
def policies(here: Here, caller: Client) -> list[PolicyView]:
    """All versions, newest first."""
    with here.database.reading() as session:
        rows = session.scalars(
            select(PolicyVersion).order_by(PolicyVersion.added_at.desc()).limit(_LISTED)
        )
        return [PolicyView.model_validate(row) for row in rows]


@router.get("/policies/{sha256}")
def policy(here: Here, caller: Client, sha256: str) -> PolicyText:
    """A version, with its file."""
    with here.database.reading() as session:
        row = session.get(PolicyVersion, sha256)
    if row is None:
        raise Problem("not_found", f"there is no policy {sha256!r}")
    return PolicyText.model_validate(row)


@router.post("/bundles", status_code=201, openapi_extra=_body("application/octet-stream"))
async def add_bundle(request: Request, here: Here, caller: Admin) -> BundleView:
    """Check and keep a bundle's directory as zip; every part is loaded for that, which takes its time."""
    here.settings.incoming.mkdir(parents=True, exist_ok=True)
    archive = here.settings.incoming / f"bundle_{secrets.token_hex(8)}"
    most, size = here.settings.max_upload_bytes, 0
    try:
        with archive.open("xb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise Problem("too_large", f"more than {most} bytes; expected at most that")
                file.write(chunk)
        row = await run_in_threadpool(here.deployments.add_bundle, archive, caller.id)
    finally:
        archive.unlink(missing_ok=True)
    return BundleView.model_validate(row)


@router.get("/bundles")
def bundles(here: Here, caller: Client) -> list[BundleView]:
    """All versions, newest first."""
    with here.database.reading() as session:
        rows = session.scalars(
            select(BundleVersion).order_by(BundleVersion.added_at.desc()).limit(_LISTED)
        )
        return [BundleView.model_validate(row) for row in rows]


@router.post("/deployments", status_code=201)
def deploy(here: Here, caller: Admin, asked: NewDeployment) -> DeploymentView:
    """Let a bundle, a policy (by default the bundle's) and a tau moderate from now on."""
    row = here.deployments.activate(asked.bundle_sha256, asked.policy_sha256, asked.tau, caller.id)
    with here.database.reading() as session:
        return deployment_view(session, row)


@router.post("/deployments/{number}/activate", status_code=201)
def roll_back(here: Here, caller: Admin, number: int) -> DeploymentView:
    """Let what moderated earlier moderate again; it becomes a new deployment."""
    with here.database.reading() as session:
        earlier = session.get(Deployment, number) if 0 < number < 2**31 else None
    if earlier is None:
        raise Problem("not_found", f"there is no deployment {number}")
    row = here.deployments.activate(
        earlier.bundle_sha256, earlier.policy_sha256, earlier.tau, caller.id
    )
    with here.database.reading() as session:
        return deployment_view(session, row)


@router.get("/deployments")
def deployments(here: Here, caller: Client) -> list[DeploymentView]:
    """All of them, newest first; the first one is active."""
    with here.database.reading() as session:
        rows = session.scalars(select(Deployment).order_by(Deployment.id.desc()).limit(_LISTED))
        return [deployment_view(session, row) for row in rows]


@router.get("/deployments/active")
def active_deployment(here: Here, caller: Client) -> DeploymentView:
    """What moderates now."""
    with here.database.reading() as session:
        return deployment_view(session, active(session))
