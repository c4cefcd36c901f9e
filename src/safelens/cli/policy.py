"""`safelens policy`: show a policy and what the model reads of it, or check a policy file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from safelens.policy import Policy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show a policy as the model reads it, or check a policy file.",
)

_BAD_USAGE = 2


@app.command()
def show(
    file: Annotated[str, typer.Argument(help="YAML file, or the name of a packaged policy.")],
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Print the exact texts that the model reads.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a policy as a table, or the texts that are made from it."""
    from safelens.policy import Policy, PolicyError

    try:
        policy = Policy.load(file)
    except PolicyError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_BAD_USAGE) from error
    texts = _texts(policy) if prompt else {}
    if as_json:
        shown = {**policy.to_dict(), "labels": policy.labels, "sha256": policy.sha256}
        if prompt:
            shown["prompts"] = texts
        typer.echo(json.dumps(shown, ensure_ascii=False))
    elif prompt:
        for title, text in texts.items():
            typer.echo(f"=== {title} ===\n{text}\n")
    else:
        _print_table(policy)


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="YAML files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON Lines, one a file.")] = False,
) -> None:
    """Check policy files: exit code 0 when all can be used, 2 when one cannot."""
    from safelens.policy import Policy, PolicyError

    bad = False
    for file in files:
        try:
            policy = Policy.load(file)
        except PolicyError as error:
            bad = True
            if as_json:
                problems = [{"line": p.line, "message": p.message} for p in error.problems]
                typer.echo(json.dumps({"file": file, "ok": False, "problems": problems}))
            else:
                typer.echo(str(error), err=True)
            continue
        if as_json:
            typer.echo(
                json.dumps(
                    {
                        "file": file,
                        "ok": True,
                        "id": policy.id,
                        "labels": policy.labels,
                        "sha256": policy.sha256,
                        "warnings": policy.warnings(),
                    }
                )
            )
            continue
        for warning in policy.warnings():
            typer.echo(f"{file}: warning: {warning}", err=True)
        count = len(policy.categories)
        typer.echo(f"{file}: ok, {count} {'category' if count == 1 else 'categories'}")
    if bad:
        raise typer.Exit(_BAD_USAGE)


def _texts(policy: Policy) -> dict[str, str]:
    """What the model reads, in the order of the prompt; captions and scores are placeholders."""
    from safelens import prompts
    from safelens.verdict import Caption

    even = dict.fromkeys(policy.labels, 1 / len(policy.labels))
    captions = [Caption(time_s=0.0, text="<caption of the frame>")]
    return {
        "system message": prompts.policy_prompt(policy),
        "after the video": prompts.question(policy),
        "screening, without a probe": prompts.screening_suffix().lstrip("\n"),
        "deliberation": prompts.deliberation_request(policy, captions, even).lstrip("\n"),
        "answer when nothing is violated": prompts.guardrail_answer(policy, []),
    }


def _print_table(policy: Policy) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, title=Text(f"{policy.name} ({policy.id}, {policy.version})"))
    for column in ("#", "id", "name", "core value and rules"):
        table.add_column(column, overflow="fold")
    for number, category in enumerate(policy.categories, start=1):
        rules = Text(category.core_value)
        for rule in category.rules:
            style = "red" if rule.kind == "blocked" else "green"
            rules.append(f"\n[{rule.kind.upper()}] ", style=style).append(rule.text)
        table.add_row(str(number), Text(category.id), Text(category.name), rules)
    console = Console()
    console.print(table)
    console.print(f"sha256 {policy.sha256}", highlight=False, soft_wrap=True)
