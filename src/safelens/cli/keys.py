"""`safelens keys`: API keys of the service on this machine, without the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelens.cli._options import FAILED, fail
from safelens.cli._service import needs_service

if TYPE_CHECKING:
    from safelens.service.keys import Keys

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Make, list and revoke API keys; the database is that of `safelens serve`.",
)

Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="As for serve.", show_default="safelens-data"),
]


class RoleName(StrEnum):
    """What a key may do; each may do what those before it may."""

    client = "client"
    moderator = "moderator"
    admin = "admin"


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    role: Annotated[RoleName, typer.Option(help="What it may do.")] = RoleName.client,
    data: Data = None,
) -> None:
    """Make a key and print it, and the secret that its webhooks are signed with: the only time."""
    with _keys(data) as keys:
        made = keys.add(name, role.value)
    typer.echo(f"id              {made.id}")
    typer.echo(f"key             {made.key}")
    typer.echo(f"webhook secret  {made.webhook_secret}")


@app.command(name="list")
def list_keys(data: Data = None) -> None:
    """Print id, role, state and name of every key."""
    with _keys(data) as keys:
        for row in keys.all():
            state = "valid" if row.revoked_at is None else "revoked"
            typer.echo(f"{row.id}  {row.role:9}  {state:7}  {row.name}")


@app.command()
def revoke(identity: Annotated[str, typer.Argument(metavar="ID")], data: Data = None) -> None:
    """Revoke a key at once."""
    with _keys(data) as keys:
        if not keys.revoke(identity):
            fail(f"there is no key {identity!r}, or it is revoked already")


@contextmanager
def _keys(data: Path | None) -> Iterator[Keys]:
    with needs_service():
        from sqlalchemy.exc import SQLAlchemyError

        from safelens.service.database import Database
        from safelens.service.keys import Keys
        from safelens.service.settings import Settings
    settings = Settings() if data is None else Settings(data=data)
    database = Database(settings.database_url)
    try:
        database.migrate()
        yield Keys(database)
    except (SQLAlchemyError, OSError) as error:
        fail(f"the database cannot be used: {error}", FAILED)
    finally:
        database.close()
