"""The tables. Times are seconds since 1970, UTC; texts of closed sets are their words.

Knows what is stored. `audit` and `decisions` are append-only: the database itself refuses changes (triggers
in `migrations/`).
"""

from __future__ import annotations

from typing import Any, cast

import sqlalchemy
from sqlalchemy import JSON, Double, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column


class Table(DeclarativeBase):
    """All tables."""

    type_annotation_map = {float: Double, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class ApiKey(Table):
    """Who may ask. The key itself is not kept, only its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    """client, moderator or admin."""
    sha256: Mapped[str]
    webhook_secret: Mapped[str]
    """Signs this key's webhooks, so it is kept as it is."""
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class PolicyVersion(Table):
    """A policy that was uploaded; never changed."""

    __tablename__ = "policy_versions"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    policy_id: Mapped[str]
    version: Mapped[str]
    yaml: Mapped[str] = mapped_column(Text)
    added_at: Mapped[float]
    added_by: Mapped[str]


class BundleVersion(Table):
    """A bundle that was uploaded or named; never changed."""

    __tablename__ = "bundle_versions"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[str]
    source: Mapped[str | None]
    """Name, directory or hub id; None for an upload, which the media store holds by its digest."""
    knows: Mapped[str | None] = mapped_column(Text)
    tau: Mapped[float]
    taus: Mapped[dict[str, Any]]
    layout: Mapped[str]
    keyframe_shift_s: Mapped[float]
    policy_encoding: Mapped[str]
    prune_keep: Mapped[float | None]
    policy_sha256: Mapped[str] = mapped_column(ForeignKey("policy_versions.sha256"))
    """The policy that it brings."""
    added_at: Mapped[float]
    added_by: Mapped[str]


class Deployment(Table):
    """What moderated, from when on: the last row is active. A roll-back is a new row too."""

    __tablename__ = "deployments"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    bundle_sha256: Mapped[str] = mapped_column(ForeignKey("bundle_versions.sha256"))
    policy_sha256: Mapped[str] = mapped_column(ForeignKey("policy_versions.sha256"))
    tau: Mapped[float | None]
    """In place of the bundle's."""
    activated_at: Mapped[float]
    activated_by: Mapped[str]


class Batch(Table):
    """Jobs that belong together."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str]
    created_at: Mapped[float]

    __table_args__ = (UniqueConstraint("key_id", "idempotency_key"),)


class Job(Table):
    """A video that was accepted. States: fetching, queued, running, done, cancelled."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id"))
    deployment_id: Mapped[int] = mapped_column(ForeignKey("deployments.id"))
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str]
    """Of the request, to tell a repetition from another request under the same idempotency key."""
    state: Mapped[str]
    name: Mapped[str] = mapped_column(Text)
    reference: Mapped[str | None] = mapped_column(Text)
    """The client's own."""
    url: Mapped[str | None] = mapped_column(Text)
    callback_url: Mapped[str | None] = mapped_column(Text)
    sha256: Mapped[str | None]
    size: Mapped[int | None]
    kind: Mapped[str | None]
    """Media type as sniffed."""
    media: Mapped[str | None]
    """Name in the media store; None before a fetch and after retention."""
    content_key: Mapped[str | None]
    """Jobs that have the same deserve the same verdict."""
    created_at: Mapped[float]
    finished_at: Mapped[float | None]
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        UniqueConstraint("key_id", "idempotency_key"),
        Index("ix_jobs_state", "state", "created_at"),
        Index("ix_jobs_created", "created_at", "id"),
        Index("ix_jobs_batch", "batch_id"),
        Index("ix_jobs_finished", "finished_at"),
        Index("ix_jobs_sha256", "sha256"),
        Index("ix_jobs_media", "media"),
    )


class VerdictRow(Table):
    """The one verdict of a job; what a moderator sorts and filters by stands in columns of its own."""

    __tablename__ = "verdicts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    content_key: Mapped[str | None]
    document: Mapped[str] = mapped_column(Text)
    """JSON of `safelens.verdict.Verdict`."""
    status: Mapped[str]
    flagged: Mapped[bool | None]
    label: Mapped[str | None]
    decided_by: Mapped[str | None]
    risk: Mapped[float] = mapped_column()
    """Highest score of a category; 1 where nothing was decided: what is unknown is no small risk."""
    uncertainty: Mapped[float] = mapped_column()
    """1 - confidence; 1 where nothing was decided."""
    priority: Mapped[float] = column_property(risk + uncertainty)
    """How much a person is needed: what is risky, what is unsure, first what is both."""
    reused_from: Mapped[str | None]
    """The job that the video was looked at for."""
    frames: Mapped[list[Any]]
    """Of each frame: time_s, evidence, and its first byte and length in the frames' file."""
    frames_media: Mapped[str | None]
    at: Mapped[float]

    __table_args__ = (
        Index("ix_verdicts_content", "content_key"),
        Index("ix_verdicts_risk", "risk"),
        Index("ix_verdicts_uncertainty", "uncertainty"),
        Index("ix_verdicts_frames", "frames_media"),
    )


class Decision(Table):
    """What a moderator decided; the last one of a job counts."""

    __tablename__ = "decisions"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    kind: Mapped[str]
    """confirm, overturn or escalate."""
    labels: Mapped[list[Any] | None]
    """Category ids that the video violates; None where that is left to others."""
    note: Mapped[str | None] = mapped_column(Text)
    at: Mapped[float]


class Claim(Table):
    """A video that a moderator has open."""

    __tablename__ = "claims"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    until: Mapped[float]


class AuditEntry(Table):
    """Who did what, when."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    actor: Mapped[str]
    """Id of an API key, or `system`."""
    action: Mapped[str]
    subject: Mapped[str]
    details: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_audit_subject", "subject"),)


class Delivery(Table):
    """A webhook that is owed. States: pending, delivered, failed."""

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    state: Mapped[str]
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[float]
    last_error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ix_deliveries_due", "state", "next_at"),)


class WorkerRow(Table):
    """A model process that reports."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    seen_at: Mapped[float]
    deployment_id: Mapped[int | None]
    """What it has loaded."""


# For statements of every request: a session is not told of these rows, which would cost as much as they do.
JOBS = cast(sqlalchemy.Table, Job.__table__)
VERDICTS = cast(sqlalchemy.Table, VerdictRow.__table__)
