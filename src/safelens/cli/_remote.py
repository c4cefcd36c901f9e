"""`safelens moderate --engine`: where S2 runs, and the server's options.

Knows which options go together. What is asked of the server is the matter of `safelens.remote_deliberate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._options import LONGEST_S
from safelens.cli._paths import UsageError

if TYPE_CHECKING:
    from safelens.remote_deliberate import Remote


class Engine(StrEnum):
    """Where the stages run."""

    local = "local"
    openai = "openai"
    ray = "ray"


class FramesName(StrEnum):
    """How frames are sent."""

    images = "images"
    video = "video"


class StructuredName(StrEnum):
    """How the server is asked to keep the answer's form."""

    none = "none"
    regex = "regex"
    json_schema = "json_schema"


EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="Where S1 and S2 run. local: here. openai: S2 on a server with an OpenAI-compatible endpoint, such as "
        "vLLM or SGLang, which then gets frames, captions and scores of the videos that S1 is unsure of. "
        "ray: both on a cluster, each in processes of its own; the server's options go with it too.",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", help="Of the endpoint, such as http://localhost:8000/v1."),
]
ServedModel = Annotated[
    str | None,
    typer.Option("--served-model", metavar="NAME", help="The model as the endpoint names it."),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        "--api-key-env", metavar="NAME", help="Environment variable that holds the API key."
    ),
]
FramesOption = Annotated[
    FramesName | None,
    typer.Option(
        "--frames",
        help="How frames are sent: as images, or as one video, for video models in vLLM.",
        show_default="images",
    ),
]
StructuredOption = Annotated[
    StructuredName | None,
    typer.Option(
        "--structured",
        help="Have the server keep the answer's form: regex in vLLM; json_schema in vLLM, SGLang, OpenAI.",
        show_default="none",
    ),
]
Logprobs = Annotated[
    bool,
    typer.Option(
        "--logprobs",
        help="Ask how probable each boolean was, as category scores; else these are 1 or 0.",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", min=1, help="Budget of an answer, with thoughts.", show_default="2048"
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", min=1, help="Most requests at a time.", show_default="8"),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=1.0, max=LONGEST_S, help="Seconds for one answer.", show_default="120"
    ),
]
_KEYS = {
    "base_url": "base_url",
    "served_model": "model",
    "api_key_env": "api_key_env",
    "frames": "frames",
    "structured": "structured",
    "logprobs": "logprobs",
    "max_new_tokens": "max_new_tokens",
    "concurrency": "concurrency",
    "timeout": "timeout_s",
}
"""Option to the setting of `Remote` that it gives."""


def remote_settings(given: Mapping[str, Any]) -> Remote | None:
    """The server on which S2 runs, by a command's arguments; None for none.

    Raises:
        UsageError: one is missing, or is given with `--engine local`.
    """
    chosen = {key: given[name] for name, key in _KEYS.items() if given[name] not in (None, False)}
    if given["engine"] is Engine.local:
        for name, key in _KEYS.items():
            if key in chosen:
                raise UsageError(f"--{name.replace('_', '-')} belongs to --engine openai")
        return None
    if given["engine"] is Engine.ray and not chosen:
        return None
    for name in ("base_url", "served_model"):
        if not given[name]:
            needs = "--engine openai" if given["engine"] is Engine.openai else "S2 on a server"
            raise UsageError(f"{needs} needs --{name.replace('_', '-')}")
    from safelens.remote_deliberate import Remote

    return Remote(**chosen)
