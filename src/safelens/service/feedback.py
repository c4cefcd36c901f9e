"""Moderators' decisions as Records, which `safelens curate` and `safelens calibrate` read.

Knows which decisions teach something: the last ones on videos that are still kept, under one policy. An
escalated video is not decided, and the same content teaches once.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select

from safelens.data.records import Record
from safelens.policy import Policy
from safelens.service.database import Database
from safelens.service.tables import Decision, Deployment, Job, VerdictRow
from safelens.verdict import Verdict

_PAGE = 500


def records(database: Database, policy: Policy) -> Iterator[Record]:
    """The last decision on each video, in the order of decisions.

    Args:
        database: of the service.
        policy: whose categories the labels speak of; decisions under others are left out.
    """
    last = (
        select(func.max(Decision.id).label("id"))
        .join(Job, Job.id == Decision.job_id)
        .join(Deployment, Deployment.id == Job.deployment_id)
        .where(Deployment.policy_sha256 == policy.sha256)
        .group_by(Job.sha256)
        .subquery()
    )
    after = 0
    while True:
        with database.reading() as session:
            page = session.execute(
                select(Decision, Job, VerdictRow)
                .join(last, last.c.id == Decision.id)
                .join(Job, Job.id == Decision.job_id)
                .join(VerdictRow, VerdictRow.job_id == Job.id)
                .where(Decision.id > after)
                .order_by(Decision.id)
                .limit(_PAGE)
            ).all()
        for decision, job, verdict in page:
            if decision.labels is not None and job.media is not None:
                yield _record(decision, job, Verdict.from_json(verdict.document))
            after = decision.id
        if len(page) < _PAGE:
            return


def _record(decision: Decision, job: Job, verdict: Verdict) -> Record:
    return Record(
        id=job.id,
        video=f"videos/{job.id}",
        labels=tuple(decision.labels or ()),
        captions=tuple(verdict.captions),
        source="service",
        group=job.sha256,
    )
