"""`/console/queue`: what waits for a person, the most urgent first."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field, field_validator, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from safelens.policy import SAFE, Policy
from safelens.service.api.listing import Filters, list_jobs
from safelens.service.api.models import JobState
from safelens.service.claims import elsewhere
from safelens.service.console.access import SignedIn
from safelens.service.console.page import page
from safelens.service.console.session import PATH
from safelens.service.context import Here
from safelens.service.tables import Decision, Job, PolicyVersion

router = APIRouter(prefix=PATH, include_in_schema=False)


class QueueFilters(Filters):
    """Filters as the queue's form sends them: what is left empty does not matter.

    Attributes:
        decided: id of the job that was just decided on, to say so.
    """

    state: JobState | None = "done"
    decision: Literal["none", "confirm", "overturn", "escalate"] | None = "none"
    order: Literal["newest", "priority", "risk", "uncertainty"] = "priority"
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    decided: Annotated[str, Field(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_any(cls, fields: Any) -> Any:
        return {key: None if value == "" else value for key, value in dict(fields).items()}

    @field_validator("order", mode="before")
    @classmethod
    def _some_order(cls, order: Any) -> Any:
        return order or "priority"

    @property
    def free(self) -> bool:
        """Whether what other moderators have open is left out: in the queue itself, not where one looks for a video."""
        return self.decision == "none" and not self.search

    def query(self, **changes: Any) -> str:
        """The same filters as a query, without where on the list one is."""
        values = self.model_dump(mode="json", exclude={"after", "decided", "limit"}) | changes
        usual = type(self)().model_dump(mode="json")
        return urlencode(
            {
                key: ""
                if value is None
                else str(value).lower()
                if value in (True, False)
                else value
                for key, value in values.items()
                if value != usual.get(key)
            }
        )


def labels(session: Session) -> dict[str, str]:
    """Names of all categories that a verdict may have, by id."""
    found: dict[str, str] = {}
    for text in session.scalars(select(PolicyVersion.yaml).order_by(PolicyVersion.added_at)):
        found |= {category.id: category.name for category in Policy.from_yaml(text).categories}
    return found | {SAFE: "Safe"}


def last_act(session: Session, job_id: str | None) -> tuple[Job, Decision] | None:
    """The last decision on a job, to be told on the next page."""
    if job_id is None:
        return None
    row = session.execute(
        select(Job, Decision)
        .join(Decision, Decision.job_id == Job.id)
        .where(Job.id == job_id)
        .order_by(Decision.id.desc())
        .limit(1)
    ).first()
    return None if row is None else (row[0], row[1])


@router.get("/queue")
def queue(
    request: Request, here: Here, visitor: SignedIn, filters: Annotated[QueueFilters, Query()]
) -> Response:
    """A page of the queue."""
    with here.database.reading() as session:
        found = list_jobs(session, visitor.caller, filters, free=filters.free)
        return page(
            request,
            "queue",
            visitor,
            filters=filters,
            jobs=found.jobs,
            elsewhere=elsewhere(session, visitor.caller.id) if filters.free else [],
            following=found.next,
            labels=labels(session),
            knows=sorted({job.knows for job in found.jobs if job.knows}),
            decided=last_act(session, filters.decided),
        )
