"""How a job ends: with exactly one verdict, and a webhook where one is owed, in one transaction.

Knows what is written at a job's end, and which verdicts may serve another job. Knows nothing of queues.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass, fields
from typing import Any, Literal

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from safelens import __version__
from safelens.service.tables import (
    JOBS,
    VERDICTS,
    BundleVersion,
    Delivery,
    Deployment,
    Job,
    PolicyVersion,
    VerdictRow,
)
from safelens.verdict import ErrorInfo, Provenance, Verdict

_REUSED = ("ok", "partial", "out_of_domain")
"""What depends on the video alone; an error may pass."""
_EARLIER = (
    select(VerdictRow)
    .where(VerdictRow.content_key == bindparam("content"), VerdictRow.status.in_(_REUSED))
    .order_by(VerdictRow.reused_from.is_not(None), VerdictRow.at)
    .limit(1)
)
_VERDICT = insert(VERDICTS)
_DONE = (
    update(JOBS)
    .where(JOBS.c.id == bindparam("job"))
    .values(state="done", finished_at=bindparam("now"), lease_owner=None, lease_until=None)
)


@dataclass(frozen=True)
class Work:
    """A job as those see it who work on it and end it, column by column; no session is told of it."""

    id: str
    name: str
    sha256: str | None
    media: str | None
    content_key: str | None
    callback_url: str | None
    deployment_id: int
    created_at: float
    attempts: int = 0


WORK = tuple(JOBS.c[field.name] for field in fields(Work))
"""The columns of `Work`."""


@dataclass(frozen=True)
class Frames:
    """The frames of a verdict in the media store.

    Attributes:
        index: see `VerdictRow.frames`.
        media: their file; None where there are none.
    """

    index: list[Any]
    media: str | None


NO_FRAMES = Frames([], None)


def content_key(sha256: str, deployment: Deployment) -> str:
    """What a verdict depends on: the video, bundle, policy, tau in place of the bundle's, and this package."""
    bundle, policy = deployment.bundle_sha256, deployment.policy_sha256
    parts = (sha256, bundle, policy, deployment.tau, __version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def conclude(
    session: Session,
    job: Job | Work,
    verdict: Verdict,
    frames: Frames = NO_FRAMES,
    *,
    reused_from: str | None = None,
) -> None:
    """End a job that has not ended."""
    now = time.time()
    session.execute(
        _VERDICT,
        {
            "job_id": job.id,
            "content_key": job.content_key,
            "document": verdict.to_json(),
            "status": verdict.status,
            "flagged": verdict.flagged,
            "label": verdict.label,
            "decided_by": verdict.decided_by,
            "risk": _risk(verdict),
            "uncertainty": 1.0 if verdict.confidence is None else 1.0 - verdict.confidence,
            "reused_from": reused_from,
            "frames": frames.index,
            "frames_media": frames.media,
            "at": now,
        },
    )
    session.execute(_DONE, {"job": job.id, "now": now})
    if job.callback_url is not None:
        session.add(
            Delivery(id=f"msg_{uuid.uuid4().hex}", job_id=job.id, state="pending", next_at=now)
        )


def conclude_by_reuse(session: Session, job: Job | Work) -> bool:
    """End a job with the verdict on the same content, if there is one."""
    earlier = session.scalar(_EARLIER, {"content": job.content_key})
    if earlier is None:
        return False
    verdict = Verdict.from_json(earlier.document)
    renamed = named(verdict, verdict.video, job.name)
    frames = Frames(earlier.frames, earlier.frames_media)
    conclude(session, job, renamed, frames, reused_from=earlier.reused_from or earlier.job_id)
    return True


def conclude_in_error(
    session: Session,
    job: Job | Work,
    status: Literal["video_error", "model_error"],
    code: str,
    message: str,
) -> None:
    """End a job that no model looked at."""
    deployment = session.get_one(Deployment, job.deployment_id)
    verdict = Verdict(
        video=job.name,
        sha256=job.sha256,
        status=status,
        error=ErrorInfo(code=code, message=message),
        provenance=provenance(session, deployment),
    )
    conclude(session, job, verdict)


def provenance(session: Session, deployment: Deployment) -> Provenance:
    """What a deployment's verdicts depend on."""
    bundle = session.get_one(BundleVersion, deployment.bundle_sha256)
    policy = session.get_one(PolicyVersion, deployment.policy_sha256)
    return Provenance(
        package=__version__,
        bundle=f"{bundle.name} {bundle.version}",
        bundle_sha256=bundle.sha256,
        policy=policy.policy_id,
        policy_sha256=policy.sha256,
        tau=_tau(session, deployment),
        taus=None if deployment.tau is not None else bundle.taus or None,
        layout=bundle.layout,
        policy_encoding="parallel" if bundle.policy_encoding == "parallel" else None,
        prune_keep=bundle.prune_keep,
        keyframe_shift_s=bundle.keyframe_shift_s or None,
        knows=bundle.knows,
    )


def named(verdict: Verdict, path: str, name: str) -> Verdict:
    """The verdict under the name that the client knows, in place of a path of this machine."""
    changed: dict[str, Any] = {"video": name}
    if verdict.error is not None:
        message = verdict.error.message.replace(path, name)
        changed["error"] = verdict.error.model_copy(update={"message": message})
    return verdict.model_copy(update=changed)


def _tau(session: Session, deployment: Deployment) -> float:
    if deployment.tau is not None:
        return deployment.tau
    return session.get_one(BundleVersion, deployment.bundle_sha256).tau


def _risk(verdict: Verdict) -> float:
    if verdict.flagged is None:
        return 1.0
    return max((category.score for category in verdict.categories), default=1.0)
