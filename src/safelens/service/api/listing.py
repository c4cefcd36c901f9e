"""Jobs by filters, in an order, a page at a time. What a moderator's queue is made of."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, exists, or_, select, tuple_
from sqlalchemy.orm import Session

from safelens.service.api.models import JobList, JobState
from safelens.service.api.views import last_decision, summary
from safelens.service.claims import free_for
from safelens.service.keys import Caller
from safelens.service.problems import Problem
from safelens.service.tables import BundleVersion, Decision, Deployment, Job, VerdictRow
from safelens.verdict import Stage, Status

_ORDERS = {
    "newest": Job.created_at,
    "priority": VerdictRow.priority,
    "risk": VerdictRow.risk,
    "uncertainty": VerdictRow.uncertainty,
}
"""Each downwards."""


class Filters(BaseModel):
    """Which jobs; what is not given does not matter."""

    model_config = ConfigDict(extra="forbid")

    state: JobState | None = None
    status: Status | None = None
    flagged: bool | None = None
    label: Annotated[str, Field(max_length=64)] | None = None
    decided_by: Stage | None = None
    decision: Annotated[
        Literal["none", "confirm", "overturn", "escalate"] | None,
        Field(description="The last one; `none` for jobs that nobody decided on."),
    ] = None
    batch: Annotated[str, Field(max_length=64)] | None = None
    reference: Annotated[str, Field(max_length=255)] | None = None
    sha256: Annotated[str, Field(max_length=64)] | None = None
    search: Annotated[
        str | None,
        Field(max_length=255, description="A part of name or reference, or a whole id or SHA-256."),
    ] = None
    since: datetime | None = None
    until: datetime | None = None
    order: Annotated[
        Literal["newest", "priority", "risk", "uncertainty"],
        Field(description="`priority` is risk + uncertainty."),
    ] = "newest"
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: Annotated[str | None, Field(max_length=255, description="`next` of a page.")] = None


def list_jobs(session: Session, caller: Caller, filters: Filters, *, free: bool = False) -> JobList:
    """A page of jobs.

    Args:
        session: the transaction.
        caller: whose page it is.
        filters: which jobs, in which order.
        free: leave out what other moderators have open.

    Raises:
        Problem: invalid, if `after` is of no page.
    """
    column = _ORDERS[filters.order]
    query: Select[Any] = (
        select(Job, VerdictRow, last_decision(), BundleVersion.knows)
        .join(VerdictRow, VerdictRow.job_id == Job.id, isouter=filters.order == "newest")
        .join(Deployment, Deployment.id == Job.deployment_id)
        .join(BundleVersion, BundleVersion.sha256 == Deployment.bundle_sha256)
        .where(*_conditions(filters))
        .order_by(column.desc(), Job.id.desc())
        .limit(filters.limit + 1)
    )
    if not caller.may("moderator"):
        query = query.where(Job.key_id == caller.id)
    if free:
        query = query.where(free_for(caller.id))
    if filters.after is not None:
        value, job_id = _read_position(filters.after)
        query = query.where(tuple_(column, Job.id) < tuple_(value, job_id))
    rows = session.execute(query).all()
    page = rows[: filters.limit]
    following = None
    if len(rows) > len(page):
        last, verdict = page[-1][:2]
        following = position(last, verdict, filters.order)
    return JobList(jobs=[summary(*row) for row in page], next=following)


def position(job: Job, verdict: VerdictRow | None, order: str) -> str:
    """A job's place in an order, as `after` takes it."""
    value = job.created_at if order == "newest" else getattr(verdict, order)
    return base64.urlsafe_b64encode(json.dumps([value, job.id]).encode()).decode()


def _conditions(filters: Filters) -> list[Any]:
    equal = {
        Job.state: filters.state,
        Job.batch_id: filters.batch,
        Job.reference: filters.reference,
        Job.sha256: filters.sha256,
        VerdictRow.status: filters.status,
        VerdictRow.flagged: filters.flagged,
        VerdictRow.label: filters.label,
        VerdictRow.decided_by: filters.decided_by,
    }
    found: list[Any] = [column == value for column, value in equal.items() if value is not None]
    if filters.search:
        parts = (c.icontains(filters.search, autoescape=True) for c in (Job.name, Job.reference))
        found.append(or_(*parts, Job.id == filters.search, Job.sha256 == filters.search))
    if filters.since is not None:
        found.append(Job.created_at >= filters.since.timestamp())
    if filters.until is not None:
        found.append(Job.created_at < filters.until.timestamp())
    if filters.decision == "none":
        found.append(~exists().where(Decision.job_id == Job.id))
    elif filters.decision is not None:
        found.append(last_decision() == filters.decision)
    return found


def _read_position(after: str) -> tuple[float, str]:
    try:
        value, job_id = json.loads(base64.urlsafe_b64decode(after.encode("ascii")))
        return float(value), str(job_id)
    except (ValueError, TypeError) as error:
        raise Problem("invalid", "`after` is no `next` of an earlier page") from error
