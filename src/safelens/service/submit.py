"""How a request becomes jobs: all of them or none, once per idempotency key, and only while there is room.

Knows acceptance and cancelling. What becomes of a job afterwards is the matter of `queue`.
"""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.orm import Session

from safelens.service.audit import record
from safelens.service.conclude import WORK, Work, conclude_by_reuse, content_key
from safelens.service.database import Database
from safelens.service.deployments import active
from safelens.service.problems import Problem
from safelens.service.sink import Received
from safelens.service.tables import JOBS, Batch, Job

_LOCK = 1
_WAITING = ("fetching", "queued")
_COUNT = select(func.count()).where(Job.state.in_(_WAITING))
_EARLIER = select(Job.id, Job.fingerprint).where(
    Job.key_id == bindparam("key"), Job.idempotency_key == bindparam("idempotency")
)
_JOB = insert(JOBS)
_RECENT_S = 60.0
_FULL_S = 10.0
_LONGEST_WAIT_S = 600


@dataclass(frozen=True)
class Wanted:
    """A video that is to be moderated.

    Attributes:
        id: of the job to be.
        name: the client's, for people to read.
        url: to fetch; None where `received` is given.
        received: what was uploaded, kept by now under `videos/ID`.
        reference: the client's own.
        callback_url: where the webhook goes.
        batch: of the same client.
    """

    id: str
    name: str
    url: str | None = None
    received: Received | None = None
    reference: str | None = None
    callback_url: str | None = None
    batch: str | None = None

    @property
    def fingerprint(self) -> str:
        """The same for a repetition of the same request, whatever its job's id."""
        content = self.received.sha256 if self.received else self.url
        parts = (self.name, content, self.reference, self.callback_url, self.batch)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def new_id(kind: str) -> str:
    """A fresh id, such as `job_...`."""
    return f"{kind}_{uuid.uuid4().hex}"


class Submissions:
    """Accepts jobs.

    Args:
        database: where they go.
        max_queue: most that wait at a time.
    """

    def __init__(self, database: Database, max_queue: int) -> None:
        self._database = database
        self._max_queue = max_queue
        self._full_until = 0.0

    def submit(self, key: str, wanted: Wanted, idempotency_key: str | None) -> tuple[str, bool]:
        """Accept one video; the job's id, and whether it is an earlier one of the same idempotency key.

        Raises:
            Problem: queue_full, idempotency_conflict, not_found (the batch), not_ready.
        """
        with self._database.writing() as session:
            self._database.lock(session, _LOCK)
            if idempotency_key is not None:
                asked = {"key": key, "idempotency": idempotency_key}
                if earlier := session.execute(_EARLIER, asked).first():
                    _same(earlier.fingerprint, wanted.fingerprint, idempotency_key)
                    return earlier.id, True
            if wanted.batch is not None:
                batch = session.get(Batch, wanted.batch)
                if batch is None or batch.key_id != key:
                    raise Problem("not_found", f"there is no batch {wanted.batch!r} of this key")
            self._room(session, 1)
            self._accept(session, key, wanted, idempotency_key)
            return wanted.id, False

    def submit_batch(
        self, key: str, wanted: Sequence[Wanted], idempotency_key: str | None
    ) -> tuple[str, bool]:
        """Accept several videos, or none; the batch's id, and whether it is an earlier one.

        Raises:
            Problem: as `submit`.
        """
        together = hashlib.sha256("".join(w.fingerprint for w in wanted).encode()).hexdigest()
        with self._database.writing() as session:
            self._database.lock(session, _LOCK)
            if idempotency_key is not None:
                earlier = session.scalar(
                    select(Batch).where(
                        Batch.key_id == key, Batch.idempotency_key == idempotency_key
                    )
                )
                if earlier is not None:
                    _same(earlier.fingerprint, together, idempotency_key)
                    return earlier.id, True
            self._room(session, len(wanted))
            batch = Batch(
                id=new_id("batch"),
                key_id=key,
                idempotency_key=idempotency_key,
                fingerprint=together,
                created_at=time.time(),
            )
            session.add(batch)
            session.flush()
            for one in wanted:
                self._accept(session, key, one, None, batch.id)
            return batch.id, False

    @property
    def was_full(self) -> bool:
        """Whether the queue was full a moment ago."""
        return time.monotonic() <= self._full_until

    def check_room(self) -> None:
        """Refuse before an upload is read. Raises Problem (queue_full)."""
        with self._database.reading() as session:
            self._room(session, 1)

    def cancel(self, job_id: str, actor: str) -> Job:
        """End a job without a verdict; one that was cancelled before stays so.

        Raises:
            Problem: conflict, if it is done.
        """
        with self._database.writing() as session:
            job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
            assert job is not None
            if job.state == "done":
                raise Problem("conflict", f"{job_id} has its verdict and cannot be cancelled")
            if job.state != "cancelled":
                job.state, job.finished_at = "cancelled", time.time()
                job.lease_owner = job.lease_until = None
                record(session, actor, "job.cancel", job_id)
            return job

    def _accept(
        self,
        session: Session,
        key: str,
        wanted: Wanted,
        idempotency_key: str | None,
        batch: str | None = None,
    ) -> None:
        deployment = active(session)
        got = wanted.received
        key_of_content = None if got is None else content_key(got.sha256, deployment)
        row: dict[str, Any] = {
            "id": wanted.id,
            "key_id": key,
            "batch_id": batch or wanted.batch,
            "deployment_id": deployment.id,
            "idempotency_key": idempotency_key,
            "fingerprint": wanted.fingerprint,
            "state": "queued" if got else "fetching",
            "name": wanted.name,
            "reference": wanted.reference,
            "url": wanted.url,
            "callback_url": wanted.callback_url,
            "sha256": got.sha256 if got else None,
            "size": got.size if got else None,
            "kind": got.kind if got else None,
            "media": f"videos/{wanted.id}" if got else None,
            "content_key": key_of_content,
            "created_at": time.time(),
            "attempts": 0,
        }
        session.execute(_JOB, row)
        if got is not None:
            conclude_by_reuse(session, Work(*(row[column.name] for column in WORK)))

    def _room(self, session: Session, more: int) -> None:
        waiting = session.scalar(_COUNT) or 0
        if waiting + more <= self._max_queue:
            return
        self._full_until = time.monotonic() + _FULL_S
        recent = Job.finished_at > time.time() - _RECENT_S
        done = session.scalar(select(func.count()).where(recent)) or 0
        seconds = math.ceil(more * _RECENT_S / done) if done else _RECENT_S
        raise Problem(
            "queue_full",
            f"{waiting} jobs wait, of at most {self._max_queue}; {done} ended in the last minute. Try "
            "again later, or have the operator add workers",
            headers={"Retry-After": str(int(min(seconds, _LONGEST_WAIT_S)))},
            waiting=waiting,
        )


def _same(then: str, now: str, idempotency_key: str) -> None:
    if then != now:
        raise Problem(
            "idempotency_conflict",
            f"idempotency key {idempotency_key!r} was given with another request; use a new one",
        )
