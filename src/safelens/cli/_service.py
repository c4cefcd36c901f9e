"""What commands of the service share: what to install, and the key for a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from safelens.cli._options import fail

KEY_VARIABLE = "SAFELENS_API_KEY"
Server = Annotated[
    str,
    typer.Option(
        metavar="URL", help=f"Address of a `safelens serve`; {KEY_VARIABLE} holds the key."
    ),
]


@contextmanager
def needs_service(extra: str = "service") -> Iterator[None]:
    """Say what to install where a package of the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("safelens"):
            raise
        fail(f"{error.name} is not installed; install it with: pip install 'safelens[{extra}]'")


def api_key() -> str:
    """The key for a server, from the environment."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        fail(f"set {KEY_VARIABLE} to your key for the server")
    return key
