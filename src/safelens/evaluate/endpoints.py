"""What a settings file says, and what of it is wrong in words; of a system or a judge behind an endpoint.

Knows files of settings and their errors. What an endpoint's settings are is the matter of `safelens.endpoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from safelens import endpoint
from safelens.bundle import ClipSettings
from safelens.chat_errors import EndpointStop
from safelens.endpoint import Endpoint
from safelens.evaluate.system import SystemsError
from safelens.yaml_lines import Document, read_yaml

if TYPE_CHECKING:
    from safelens.chat_client import ChatClient


class Settings(BaseModel):
    """Settings of which none is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def open_client(where: str, settings: Endpoint) -> ChatClient:
    """A client of the endpoint that a file names, without a cache; nothing is asked yet.

    Args:
        where: names file, line and thing in messages.
        settings: of the endpoint.

    Raises:
        SystemsError: an address or key cannot be used, or the HTTP library is not there.
    """
    try:
        return endpoint.open_client(settings)
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


def said(kind: type[BaseModel], error: Any) -> str:
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
