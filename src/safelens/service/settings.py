"""What an operator may set, from the environment.

Knows names, units and defaults. Every field is read from `SAFELENS_` and its name in capitals, the database
also from `DATABASE_URL`; lists and mappings are JSON there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from safelens.engine.cluster import Pool

DAY_S = 86_400.0


class Settings(BaseSettings):
    """Settings of all processes of one service.

    Raises:
        pydantic.ValidationError: a value is out of range or of the wrong kind.
    """

    model_config = SettingsConfigDict(
        env_prefix="SAFELENS_", extra="ignore", frozen=True, populate_by_name=True
    )

    data: Path = Path("safelens-data")
    """Folder of this machine: the SQLite file, media, and uploads that are under way."""
    database_url: str = Field(
        default="", validation_alias=AliasChoices("database_url", "DATABASE_URL")
    )
    """SQLAlchemy's address; a SQLite file in `data` by default."""
    media_url: str = ""
    """Folder or fsspec address (such as `s3://bucket/prefix`) of videos and frames; in `data` by default."""
    max_upload_mb: Annotated[int, Field(ge=1)] = 512
    """Largest video, bundle or answer to a URL fetch, in units of 1e6 bytes."""
    upload_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest that one upload or fetch may take, seconds."""
    upload_idle_s: Annotated[float, Field(gt=0)] = 20.0
    """Longest that an upload or fetch may send nothing, seconds."""
    max_queue: Annotated[int, Field(ge=1)] = 1000
    """Most jobs that wait or are being fetched; beyond it, 429."""
    requests_per_minute: Annotated[int, Field(ge=1)] = 600
    """Most requests of one API key."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts that a job's URL may name, also after redirects; `*.example.com` for its subdomains."""
    callback_hosts: tuple[str, ...] = ()
    """Hosts that webhooks may go to."""
    internal_hosts: tuple[str, ...] = ()
    """Of both kinds of hosts, those that may have private or loopback addresses."""
    lease_s: Annotated[float, Field(ge=1)] = 30.0
    """How long a job stays with a process that no longer reports, seconds."""
    console_secret: str = ""
    """Signs the console's sessions; the same for web processes that share a database. By default a secret of
    this machine's own, in `data`."""
    retain_days: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Days that videos and frames are kept, by category id of the label, or by outcome: flagged, safe,
    undecided, error. What is not named is kept."""

    engine: Literal["local", "ray"] = "local"
    """Whether workers run the models, or hand videos to replicas of S1 and S2 on a Ray cluster."""
    ray_address: str = ""
    """Of the cluster; by default RAY_ADDRESS, and without that a worker starts one on its machine."""
    screen: Pool = Pool()
    """Replicas of S1 there, such as {"least": 1, "most": 4, "cpus": 2, "gpus": 0.25}."""
    deliberate: Pool = Pool()
    """Replicas of S2 there."""

    @field_validator("fetch_hosts", "callback_hosts", "internal_hosts")
    @classmethod
    def _lower(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host.lower().rstrip(".") for host in hosts)

    @model_validator(mode="after")
    def _places(self) -> Self:
        data = self.data.absolute()
        object.__setattr__(self, "data", data)
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{data / 'safelens.db'}")
        if not self.media_url:
            object.__setattr__(self, "media_url", str(data / "media"))
        return self

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload_mb` in bytes."""
        return self.max_upload_mb * 1_000_000

    @property
    def incoming(self) -> Path:
        """Where uploads lie until they are whole."""
        return self.data / "incoming"

    @property
    def bundles(self) -> Path:
        """Where uploaded bundles are unpacked."""
        return self.data / "bundles"
