"""What is removed, and when: videos and frames by the operator's rules, and what dead processes left behind.

Knows the rules. Verdicts, decisions and the audit log are never removed, and nothing is whose last decision is
that somebody else should look.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from safelens.service.audit import record
from safelens.service.database import Database
from safelens.service.media import MediaStore
from safelens.service.settings import DAY_S, Settings
from safelens.service.tables import Decision, Job, VerdictRow, WorkerRow

_PAGE = 500
_LEFT_BEHIND_S = DAY_S


class Retention:
    """Removes what may go.

    Args:
        settings: with the rules.
        database: of jobs and verdicts.
        media: where videos and frames lie.
    """

    def __init__(self, settings: Settings, database: Database, media: MediaStore) -> None:
        self._rules = settings.retain_days
        self._incoming = settings.incoming
        self._database = database
        self._media = media

    def apply(self) -> int:
        """Remove what is too old by the rules; how many jobs lost their video. Raises OSError."""
        if not self._rules:
            return 0
        cutoff = time.time() - min(self._rules.values()) * DAY_S
        removed, after = 0, ""
        while True:
            with self._database.reading() as session:
                page = session.execute(
                    select(Job, VerdictRow)
                    .outerjoin(VerdictRow, VerdictRow.job_id == Job.id)
                    .where(Job.media.is_not(None), Job.finished_at < cutoff, Job.id > after)
                    .order_by(Job.id)
                    .limit(_PAGE)
                ).all()
                due = [(j, v) for j, v in page if self._due(j, v) and not _escalated(session, j)]
            for job, verdict in due:
                self._remove(job, verdict)
            removed += len(due)
            if len(page) < _PAGE:
                return removed
            after = page[-1][0].id

    def sweep(self) -> None:
        """Remove what dead processes left: files that belong to no job, and their own rows. Raises OSError."""
        if self._incoming.is_dir():
            for path in self._incoming.iterdir():
                _unlink_old(path)
        for kind, column in (("videos", Job.media), ("frames", VerdictRow.frames_media)):
            old = self._media.older(kind, _LEFT_BEHIND_S)
            while names := list(itertools.islice(old, _PAGE)):
                with self._database.reading() as session:
                    known = set(session.scalars(select(column).where(column.in_(names))))
                for name in set(names) - known:
                    self._media.delete(name)
        with self._database.writing() as session:
            silent = WorkerRow.seen_at < time.time() - _LEFT_BEHIND_S
            session.execute(delete(WorkerRow).where(silent))

    def _due(self, job: Job, verdict: VerdictRow | None) -> bool:
        assert job.finished_at is not None
        days = self._rules.get(verdict.label or "") if verdict is not None else None
        if days is None:
            days = self._rules.get(outcome(verdict))
        return days is not None and job.finished_at < time.time() - days * DAY_S

    def _remove(self, job: Job, verdict: VerdictRow | None) -> None:
        frames = None
        with self._database.writing() as session:
            row = session.get_one(Job, job.id)
            media, row.media = row.media, None
            if verdict is not None:
                mine = session.get_one(VerdictRow, job.id)
                frames, mine.frames_media, mine.frames = mine.frames_media, None, []
                session.flush()
                shared = select(func.count()).where(VerdictRow.frames_media == frames)
                if frames is None or session.scalar(shared):
                    frames = None
            record(session, "system", "media.expire", job.id)
        for name in (media, frames):
            if name is not None:
                self._media.delete(name)


def outcome(verdict: VerdictRow | None) -> str:
    """The rule's word for a job: flagged, safe, undecided or error; a cancelled one is undecided."""
    if verdict is None:
        return "undecided"
    if verdict.status in ("video_error", "model_error"):
        return "error"
    if verdict.flagged is None:
        return "undecided"
    return "flagged" if verdict.flagged else "safe"


def _escalated(session: Session, job: Job) -> bool:
    last = (
        select(Decision.kind).where(Decision.job_id == job.id).order_by(Decision.id.desc()).limit(1)
    )
    return session.scalar(last) == "escalate"


def _unlink_old(path: Path) -> None:
    try:
        if path.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
            path.unlink()
    except FileNotFoundError:
        pass
