"""An OpenAI-compatible endpoint: its settings, and how they become a client.

Knows address, model, key and limits, whoever asks: a system under evaluation, a judge, a writer of traces, or
S2. Knows nothing of what is asked. The key stands in the environment and in no setting.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safelens.chat_errors import EndpointStop

if TYPE_CHECKING:
    from safelens.answer_cache import AnswerCache
    from safelens.chat_client import ChatClient


class Endpoint(BaseModel):
    """A model behind an OpenAI-compatible endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


def open_client(settings: Endpoint, *, cache: AnswerCache | None = None) -> ChatClient:
    """A client of the endpoint; nothing is asked yet.

    Args:
        settings: of the endpoint.
        cache: answers that are known already; None keeps none.

    Raises:
        EndpointStop: an address or key cannot be used, or the HTTP library is not there.
    """
    try:
        from safelens.chat_client import ChatClient
    except ImportError as error:
        raise EndpointStop("an endpoint needs httpx2: pip install 'safelens[remote]'") from error
    key: str | None = None
    if settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env, "").strip()
        if not key:
            raise EndpointStop(
                f"API key: the environment variable {settings.api_key_env} is not set; "
                "set it to the endpoint's key"
            )
    return ChatClient(
        settings.base_url,
        settings.model,
        cache=cache,
        api_key=key,
        concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
        retries=settings.retries,
    )
