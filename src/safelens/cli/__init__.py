"""The `safelens` command: every module of this package is one subcommand of the module's name.

A module defines either a function of its own name, a plain command, or `app`, a `typer.Typer`, a
group. It is imported when it is used or listed, so it must import torch and the like inside its
functions: `safelens --help` answers at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Modules(TyperGroup):
    """Finds the commands among the modules of this package, and imports only the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(
            module.name
            for module in pkgutil.iter_modules(__path__)
            if not module.name.startswith("_")
        )

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command_app = getattr(module, "app", None)
        if command_app is None:
            command_app = typer.Typer(add_completion=False, rich_markup_mode=None)
            command_app.command(cmd_name)(getattr(module, cmd_name))
        command = typer.main.get_command(command_app)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="safelens",
    cls=_Modules,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"safelens {version('safelens')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Moderate video against a written policy: what it violates, how surely, when, and why."""
