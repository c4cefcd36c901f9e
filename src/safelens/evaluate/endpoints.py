"""What a settings file says of an OpenAI-compatible endpoint, whoever is behind it: a system or a judge.

Knows the settings, their errors, and how they become a client. Knows nothing of what is asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from safelens.bundle import ClipSettings
from safelens.evaluate.system import SystemsError
from safelens.yaml_lines import Document, read_yaml

if TYPE_CHECKING:
    from safelens.chat_client import ChatClient


class Settings(BaseModel):
    """Settings of which none is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Endpoint(Settings):
    """A model behind an OpenAI-compatible endpoint."""

    base_url: str
    """Of the API; usually ends with /v1."""
    model: str
    """As the endpoint names it."""
    api_key_env: str | None = None
    """Environment variable that holds the API key."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Budget of an answer."""
    concurrency: int = Field(default=8, ge=1)
    """Most requests at a time."""
    timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """For one whole answer."""
    retries: int = Field(default=6, ge=0)
    """Of a request whose failure may pass."""


def open_client(where: str, settings: Endpoint) -> ChatClient:
    """A client of the endpoint, without a cache; nothing is asked yet.

    Args:
        where: names file, line and thing in messages.
        settings: of the endpoint.

    Raises:
        SystemsError: an address or key cannot be used, or the HTTP library is not there.
    """
    try:
        from safelens.chat_client import ChatClient
        from safelens.chat_errors import EndpointStop
    except ImportError as error:
        raise SystemsError(
            f"{where}: an endpoint needs httpx2: pip install 'safelens[evaluate]'"
        ) from error
    key: str | None = None
    if settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not key:
            raise SystemsError(
                f"{where}: api_key_env: the environment variable {settings.api_key_env} is not set; "
                "set it to the endpoint's key"
            )
    try:
        return ChatClient(
            settings.base_url,
            settings.model,
            cache=None,
            api_key=key,
            concurrency=settings.concurrency,
            timeout_s=settings.timeout_s,
            retries=settings.retries,
        )
    except EndpointStop as error:
        raise SystemsError(f"{where}: {error}") from error


def read_document(file: Path) -> Document:
    """A YAML file of settings.

    Raises:
        SystemsError: it cannot be read; problems with what it holds are in the document.
    """
    try:
        return read_yaml(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise SystemsError(f"{file}: cannot be read ({reason}); expected a YAML file") from error


def said(kind: type[Settings], error: Any) -> str:
    """One of pydantic's errors in words.

    Args:
        kind: of the settings, whose keys are expected.
        error: one of `ValidationError.errors()`.
    """
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        inside = error["loc"][:-1] == ("clip",)
        known = ClipSettings.model_fields if inside else kind.model_fields
        return f"unknown key {key!r}; expected {', '.join(known)}"
    if error["type"] == "missing":
        return f"key {key!r} is missing; add it"
    return f"{key}: {error['msg']}, found {error['input']!r}"
