"""Which moderator has a video open, so that two do not judge the same one without knowing of each other.

Knows claims that end by themselves. They keep nobody from deciding; that no decision is made on a page that is
out of date is the matter of `decisions`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.orm import Session

from safelens.service.database import Database
from safelens.service.tables import ApiKey, Claim, Decision, Job

CLAIM_S = 600.0
"""How long a video counts as open, seconds, unless it is decided on or its moderator opens another."""
_LOCK = 2


@dataclass(frozen=True)
class Held:
    """A video that a moderator has open.

    Attributes:
        job: its id.
        name: the video's.
        by: the moderator's name.
        until: seconds since 1970.
    """

    job: str
    name: str
    by: str
    until: float


def take(database: Database, job: str, key: str) -> Held | None:
    """Open a job's video for a moderator, whose earlier claim ends.

    Returns:
        Another's claim that holds, and stays; None where this one was made or renewed.
    """
    now = time.time()
    with database.writing() as session:
        database.lock(session, _LOCK)
        session.execute(delete(Claim).where(or_(Claim.until <= now, Claim.key_id == key)))
        others = _held(session, Claim.job_id == job)
        if not others:
            session.add(Claim(job_id=job, key_id=key, until=now + CLAIM_S))
        return others[0] if others else None


def end(session: Session, job: str) -> None:
    """Nobody has it open any more: it was decided on."""
    session.execute(delete(Claim).where(Claim.job_id == job))


def free_for(key: str) -> ColumnElement[bool]:
    """The condition that no other moderator has a job open."""
    return ~exists().where(Claim.job_id == Job.id, _of_others(key))


def elsewhere(session: Session, key: str) -> list[Held]:
    """Undecided videos that other moderators have open."""
    return _held(session, _of_others(key), ~exists().where(Decision.job_id == Job.id))


def _of_others(key: str) -> ColumnElement[bool]:
    return (Claim.key_id != key) & (Claim.until > time.time())


def _held(session: Session, *conditions: ColumnElement[bool]) -> list[Held]:
    rows = session.execute(
        select(Job.id, Job.name, ApiKey.name, Claim.until)
        .join(Claim, Claim.job_id == Job.id)
        .join(ApiKey, ApiKey.id == Claim.key_id)
        .where(*conditions)
        .order_by(Claim.until)
    )
    return [Held(*row) for row in rows]
