"""What goes in and comes out over HTTP, beside `Verdict` itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from safelens.service.keys import Role
from safelens.verdict import Provenance, Verdict

JobState = Literal["fetching", "queued", "running", "done", "cancelled"]
DecisionKind = Literal["confirm", "overturn", "escalate"]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
Reference = Annotated[str, Field(max_length=255, description="Your own, given back as it is.")]


def time_of(seconds: float) -> datetime:
    """Seconds since 1970 as a time."""
    return datetime.fromtimestamp(seconds, UTC)


Time = Annotated[
    datetime, BeforeValidator(lambda v: time_of(v) if isinstance(v, int | float) else v)
]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class UrlJob(_In):
    """A video to fetch."""

    url: Url
    name: Annotated[str, Field(max_length=1024)] | None = None
    reference: Reference | None = None
    callback_url: Url | None = None
    batch: Annotated[str, Field(max_length=64)] | None = None


class BatchItem(_In):
    """A video of a batch."""

    url: Url
    name: Annotated[str, Field(max_length=1024)] | None = None
    reference: Reference | None = None


class NewBatch(_In):
    """Videos that belong together; none, for a batch that uploads join with `batch`."""

    items: Annotated[list[BatchItem], Field(max_length=1000)] = []
    callback_url: Url | None = None


class DeploymentView(_Out):
    """A bundle, a policy and a tau."""

    id: int
    bundle: str
    bundle_sha256: str
    policy: str
    policy_sha256: str
    tau: float
    knows: Annotated[
        str | None, Field(description="What the bundle is limited to; show it with its verdicts.")
    ]
    provenance: Annotated[Provenance, Field(description="As it will stand in verdicts.")]
    activated_at: Time
    activated_by: str


class FrameView(_Out):
    """A frame that was looked at."""

    time_s: float
    evidence: bool
    url: str


class JobSummary(_Out):
    """A job in a list."""

    id: str
    state: JobState
    name: str
    reference: str | None
    batch: str | None
    created_at: Time
    finished_at: Time | None
    status: str | None
    flagged: bool | None
    label: str | None
    decided_by: str | None
    risk: float | None
    uncertainty: float | None
    decision: DecisionKind | None
    knows: str | None


class JobView(JobSummary):
    """A job."""

    url: str | None
    sha256: str | None
    size: int | None
    media_type: str | None
    deployment: DeploymentView
    verdict: Verdict | None
    reused_from: Annotated[
        str | None,
        Field(description="The job whose verdict on the same content was used; null if it is new."),
    ]
    frames: list[FrameView]


class JobList(_Out):
    """A page of jobs; `next` is the `after` of the next one."""

    jobs: list[JobSummary]
    next: str | None


class BatchView(_Out):
    """A batch."""

    id: str
    created_at: Time
    states: Annotated[dict[JobState, int], Field(description="How many jobs are in each state.")]
    jobs: list[JobSummary]


class PolicyView(_Out):
    """A version of a policy."""

    sha256: str
    policy_id: str
    version: str
    added_at: Time
    added_by: str


class PolicyText(PolicyView):
    """A version of a policy with its file."""

    yaml: str


class BundleView(_Out):
    """A version of a bundle."""

    sha256: str
    name: str
    version: str
    knows: str | None
    tau: float
    policy_sha256: str
    added_at: Time
    added_by: str


class NewDeployment(_In):
    """What is to moderate from now on."""

    bundle_sha256: str
    policy_sha256: str | None = None
    tau: Annotated[float, Field(ge=0, le=1.01)] | None = None


class NewKey(_In):
    """A key to make."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    role: Role


class KeyView(_Out):
    """A key, without its secret."""

    id: str
    name: str
    role: Role
    created_at: Time
    revoked_at: Time | None


class KeyMade(BaseModel):
    """A key at its making; neither secret can be asked for again."""

    id: str
    key: str
    webhook_secret: str


class NewDecision(_In):
    """What a moderator decided."""

    kind: DecisionKind
    labels: Annotated[
        list[str] | None,
        Field(description="With `overturn`: ids of the violated categories; empty for safe."),
    ] = None
    note: Annotated[str, Field(max_length=2000)] | None = None
    seen: Annotated[
        int | None,
        Field(
            ge=0,
            lt=2**31,
            description="Number of the last decision that you know of, 0 for none: 409 if there is another.",
        ),
    ] = None


class DecisionView(_Out):
    """A decision."""

    id: int
    job_id: str
    key_id: str
    kind: DecisionKind
    labels: list[str] | None
    note: str | None
    at: Time


class AuditView(_Out):
    """An entry of the audit log."""

    id: int
    at: Time
    actor: str
    action: str
    subject: str
    details: dict[str, Any]


class AuditPage(BaseModel):
    """Entries, newest first; `next` is the `before` of the next page."""

    entries: list[AuditView]
    next: int | None
