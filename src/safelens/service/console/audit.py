"""`/console/audit`: who did what, newest first."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import select

from safelens.service.api.review import audit as audit_page
from safelens.service.console.access import SignedIn
from safelens.service.console.page import page
from safelens.service.console.session import PATH
from safelens.service.context import Here
from safelens.service.tables import ApiKey, BundleVersion, Job

router = APIRouter(prefix=PATH, include_in_schema=False)

Text = Annotated[str, Query(max_length=128)]


@router.get("/audit")
def audit(
    request: Request,
    here: Here,
    visitor: SignedIn,
    subject: Text = "",
    actor: Text = "",
    action: Text = "",
    before: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
) -> Response:
    """A page of the audit log."""
    found = audit_page(
        here, visitor.caller, subject or None, actor or None, action or None, before, limit=100
    )
    with here.database.reading() as session:
        names = {key: name for key, name in session.execute(select(ApiKey.id, ApiKey.name))}
        subjects = [entry.subject for entry in found.entries]
        videos = {
            job: name
            for job, name in session.execute(select(Job.id, Job.name).where(Job.id.in_(subjects)))
        }
        knows = list(session.scalars(select(BundleVersion.knows).distinct()))
    return page(
        request,
        "audit",
        visitor,
        entries=found.entries,
        following=found.next,
        names=names,
        videos=videos,
        subject=subject,
        actor=actor,
        action=action,
        knows=[text for text in knows if text],
    )
