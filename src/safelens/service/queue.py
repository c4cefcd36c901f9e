"""Jobs between their acceptance and their verdict: who works on what, and what is taken from the dead.

Knows leases. A process takes jobs for some seconds and says again and again that it is alive; when it falls
silent, others take them. Whoever has lost a job writes nothing about it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.orm import Session

from safelens.service.conclude import (
    NO_FRAMES,
    WORK,
    Frames,
    Work,
    conclude,
    conclude_by_reuse,
    conclude_in_error,
    content_key,
)
from safelens.service.database import Database
from safelens.service.sink import Received
from safelens.service.tables import JOBS, Deployment, Job
from safelens.verdict import Verdict

IN_COMPANY = 3
"""So often a job may be lost with its process among others; after that it is run alone."""
MOST_ATTEMPTS = 6
"""A job that was lost so often ends in a model error: it is likely what kills the process."""
FETCHES = 3
"""Attempts at a URL that fails in a way that may pass."""
_DUE = [
    select(*WORK)
    .where(due)
    .order_by(JOBS.c.created_at, JOBS.c.id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
    for due in (
        (JOBS.c.state == "running") & (JOBS.c.lease_until < bindparam("now")),
        JOBS.c.state == "queued",
    )
]
_TAKE = (
    update(JOBS)
    .where(JOBS.c.id.in_(bindparam("jobs", expanding=True)))
    .values(
        state="running",
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
        attempts=JOBS.c.attempts + 1,
    )
)
_HELD = (
    JOBS.c.id == bindparam("job"),
    JOBS.c.state == bindparam("state"),
    JOBS.c.lease_owner == bindparam("owner"),
)
_RUNNING = select(*WORK).where(*_HELD).with_for_update()
_FETCHING = select(Job).where(*_HELD).with_for_update()


@dataclass(frozen=True)
class Claimed:
    """Jobs that a process now holds, all of one deployment, and those that ended without work."""

    jobs: Sequence[Work]
    ended: Sequence[str]


class Queue:
    """The jobs in a database.

    Args:
        database: theirs.
        lease_s: seconds that a job stays with a process that says nothing.
    """

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database = database
        self._lease_s = lease_s

    # -- for model processes ------------------------------------------------------------------------

    def claim(self, owner: str, most: int) -> Claimed:
        """Take the oldest jobs that wait or were lost, of one deployment, no content twice."""
        now = time.time()
        taken: list[Work] = []
        ended: list[str] = []
        with self._database.writing() as session:
            for job in self._waiting(session, now, 2 * most):
                if job.attempts >= MOST_ATTEMPTS:
                    message = (
                        f"{job.name}: the process that moderated it died {job.attempts} times; the video is "
                        "hostile or needs more memory than there is. Report its SHA-256"
                    )
                    conclude_in_error(session, job, "model_error", "worker_lost", message)
                    ended.append(job.id)
                elif conclude_by_reuse(session, job):
                    ended.append(job.id)
                elif self._fits(job, taken, most):
                    taken.append(replace(job, attempts=job.attempts + 1))
            if taken:
                until = now + self._lease_s
                names = [job.id for job in taken]
                session.execute(_TAKE, {"jobs": names, "owner": owner, "until": until})
        return Claimed(taken, ended)

    def renew(self, owner: str, jobs: Iterable[str]) -> None:
        """Keep jobs."""
        with self._database.writing() as session:
            session.execute(
                update(Job)
                .where(Job.id.in_(list(jobs)), Job.lease_owner == owner)
                .values(lease_until=time.time() + self._lease_s)
            )

    def release(self, owner: str, *, unharmed: bool, job: str | None = None) -> None:
        """Give a process's jobs back, or one of them: it ended in order (`unharmed`), or it is known to be dead."""
        with self._database.writing() as session:
            changes: dict[str, Any] = {"lease_until": 0.0, "lease_owner": None}
            if unharmed:
                changes |= {"state": "queued", "attempts": Job.attempts - 1}
            held = [Job.lease_owner == owner, Job.state == "running"]
            if job is not None:
                held.append(Job.id == job)
            session.execute(update(Job).where(*held).values(changes))

    def finish(self, owner: str, job: str, verdict: Verdict, frames: Frames = NO_FRAMES) -> bool:
        """End a job that this process holds; False, and nothing written, where it does not any more."""
        with self._database.writing() as session:
            held = self._running(session, owner, job)
            if held is not None:
                conclude(session, held, verdict, frames)
            return held is not None

    def fail(self, owner: str, job: str, code: str, message: str) -> bool:
        """End a job that this process holds and no model can look at; False as for `finish`."""
        with self._database.writing() as session:
            held = self._running(session, owner, job)
            if held is not None:
                conclude_in_error(session, held, "model_error", code, message)
            return held is not None

    # -- for whoever fetches ------------------------------------------------------------------------

    def claim_fetch(self, owner: str) -> Job | None:
        """Take the oldest job whose URL is to be fetched."""
        now = time.time()
        with self._database.writing() as session:
            free = or_(Job.lease_until.is_(None), Job.lease_until < now)
            job = session.scalar(
                select(Job)
                .where(Job.state == "fetching", free)
                .order_by(Job.created_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if job is not None:
                job.lease_owner, job.lease_until = owner, now + self._lease_s
                job.attempts += 1
            return job

    def fetched(self, owner: str, job: str, received: Received, media: str) -> bool:
        """A URL's video is there; False, and nothing written, where the job was taken away."""
        with self._database.writing() as session:
            row = self._fetching(session, owner, job)
            if row is None:
                return False
            deployment = session.get_one(Deployment, row.deployment_id)
            row.sha256, row.size, row.kind = received.sha256, received.size, received.kind
            row.media = media
            row.content_key = content_key(received.sha256, deployment)
            row.state, row.lease_owner, row.lease_until, row.attempts = "queued", None, None, 0
            conclude_by_reuse(session, row)
            return True

    def not_fetched(self, owner: str, job: str, code: str, message: str, *, passing: bool) -> bool:
        """A URL gave no video: again later if it may pass, else the job ends; True where it ended."""
        with self._database.writing() as session:
            row = self._fetching(session, owner, job)
            if row is None:
                return False
            if passing and row.attempts < FETCHES:
                row.lease_owner, row.lease_until = None, time.time() + 2.0**row.attempts
                return False
            conclude_in_error(session, row, "video_error", code, f"{row.url}: {message}")
            return True

    # -- inside -------------------------------------------------------------------------------------

    def _waiting(self, session: Session, now: float, most: int) -> list[Work]:
        found: list[Work] = []
        for due in _DUE:
            found += (Work(*row) for row in session.execute(due, {"now": now, "most": most}))
        return sorted(found, key=lambda job: (job.created_at, job.id))

    def _fits(self, job: Work, taken: list[Work], most: int) -> bool:
        if not taken:
            return True
        alone = job.attempts >= IN_COMPANY or taken[0].attempts > IN_COMPANY
        return (
            len(taken) < most
            and not alone
            and job.deployment_id == taken[0].deployment_id
            and all(job.content_key != other.content_key for other in taken)
        )

    def _running(self, session: Session, owner: str, job: str) -> Work | None:
        found = session.execute(_RUNNING, {"job": job, "state": "running", "owner": owner}).first()
        return None if found is None else Work(*found)

    def _fetching(self, session: Session, owner: str, job: str) -> Job | None:
        return session.scalar(_FETCHING, {"job": job, "state": "fetching", "owner": owner})
