"""`safelens curate traces`: the arguments, the progress and the count at the end.

Knows what is printed. What is done is the matter of `safelens.curate.traces`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._options import BAD_USAGE, FAILED, INTERRUPTED, LONGEST_S, PolicyName, fail
from safelens.cli._progress import progress

if TYPE_CHECKING:
    from safelens.chat_client import ChatClient
    from safelens.curate.trace_generator import TraceGenerator
    from safelens.curate.traces import Summary
    from safelens.policy import Policy

    _Writer = tuple[TraceGenerator, ChatClient | None, dict[str, Any]]


class Generator(StrEnum):
    """Who writes the traces."""

    rules = "rules"
    openai = "openai"


def traces(
    data: Annotated[
        Path,
        typer.Argument(help="Records (JSON Lines) with captions and scores.", metavar="RECORDS"),
    ],
    out: Annotated[Path, typer.Option(help="File to write; an interrupted run goes on.")],
    generator: Annotated[
        Generator,
        typer.Option(
            help="rules: from the truth of SafeWorld's records, offline. openai: a model behind an "
            "OpenAI-compatible endpoint."
        ),
    ],
    base_url: Annotated[
        str | None, typer.Option(help="Of the endpoint, such as http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="As the endpoint names it.")] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable that holds the API key."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    timeout: Annotated[
        float, typer.Option(min=1.0, max=LONGEST_S, help="Seconds for one answer.")
    ] = 300.0,
    max_attempts: Annotated[
        int,
        typer.Option(min=1, help="Texts asked for per record, each told what was wrong before."),
    ] = 4,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try again what earlier runs rejected.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Answers are kept here and never asked for twice.",
            show_default="OUT.cache",
        ),
    ] = None,
    price_in: Annotated[
        float | None, typer.Option(min=0.0, help="Of a million prompt tokens.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0.0, help="Of a million completion tokens.")
    ] = None,
    policy: PolicyName = "default",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the count as one line of JSON.")
    ] = False,
) -> None:
    """Rewrite each record's response as a reasoning trace over captions and scores.

    Every trace is checked (form, categories, label kept, captions or scores referred to, length, no
    leak). What fails is told to the generator and tried again; what never passes goes to
    OUT.rejected.jsonl with its reasons. Given again, the command skips what is finished. Exit code 0;
    1: records were rejected, left out or failed, or a file cannot be written; 2: wrong use, or the
    endpoint refuses; 130: interrupted.
    """
    from safelens.chat_errors import EndpointStop
    from safelens.curate.traces import TraceRun, rebased
    from safelens.data.records import RecordError, iter_records
    from safelens.line_log import LogError
    from safelens.policy import Policy, PolicyError

    if (price_in is None) != (price_out is None):
        fail("--price-in and --price-out go together: give both or neither")
    if out.resolve() == data.resolve():
        fail(f"--out {out} is the input; name another file")
    try:
        used = Policy.load(policy)
        total = sum(1 for _ in iter_records(data))  # all is read before anything is paid for
        if generator is Generator.rules:
            writer, client, settings = _rules(used)
        else:
            folder = cache or out.with_name(f"{out.name}.cache")
            writer, client, settings = _model(
                used, base_url, model, api_key_env, folder, concurrency, timeout
            )
        run = TraceRun(
            out,
            used,
            writer,
            settings=settings,
            max_attempts=max_attempts,
            concurrency=concurrency,
            retry_rejected=retry_rejected,
        )
    except (PolicyError, RecordError, EndpointStop, LogError) as error:
        fail(str(error))

    code = 0
    try:
        with progress("traces", total) as bar:
            records = (rebased(record, data, out) for record in iter_records(data))
            run.run(records, say=bar.say, on_done=bar.advance)
        code = 0 if run.summary.complete else FAILED
    except EndpointStop as error:
        code = BAD_USAGE
        typer.echo(f"error: {error}", err=True)
    except (LogError, OSError) as error:
        code = FAILED
        typer.echo(f"error: {error}", err=True)
    except KeyboardInterrupt:
        code = INTERRUPTED
        typer.echo("stopped; what is written is whole: give the same command again", err=True)
    cost = None if client is None else client.report.summary(price_in, price_out)
    _report(run.summary, total, cost, out, as_json=as_json)
    if code:
        raise typer.Exit(code)


def _rules(policy: Policy) -> _Writer:
    from safelens.curate.trace_rules import RuleGenerator

    return RuleGenerator(policy), None, {"generator": "rules"}


def _model(
    policy: Policy,
    base_url: str | None,
    model: str | None,
    api_key_env: str | None,
    cache: Path,
    concurrency: int,
    timeout: float,
) -> _Writer:
    from safelens.answer_cache import AnswerCache
    from safelens.curate.trace_prompt import EndpointGenerator
    from safelens.endpoint import Endpoint, open_client

    if not base_url or not model:
        fail("--generator openai needs --base-url and --model")
    endpoint = Endpoint(
        base_url=base_url,
        model=model,
        api_key_env=api_key_env,
        concurrency=concurrency,
        timeout_s=timeout,
    )
    client = open_client(endpoint, cache=AnswerCache(cache))
    settings = {"generator": "openai", "base_url": client.base_url, "model": model}
    return EndpointGenerator(client, policy), client, settings


def _report(
    summary: Summary, total: int, cost: dict[str, Any] | None, out: Path, *, as_json: bool
) -> None:
    left_out = sum(summary.left_out.values())
    if as_json:
        counts = {
            "out": str(out),
            "records": total,
            "written": summary.written,
            "written_earlier": summary.earlier,
            "rejected": summary.rejected,
            "rejected_earlier": summary.rejected_earlier,
            "rejected_by_rule": dict(summary.rules),
            "left_out": left_out,
            "left_out_by_reason": dict(summary.left_out),
            "failed": summary.failed,
        }
        typer.echo(json.dumps(counts | ({} if cost is None else {"cost": cost})))
        return
    typer.echo(f"{summary.written} traces written, {summary.earlier} there before: {out}")
    rules = ", ".join(f"{rule} {count}" for rule, count in summary.rules.most_common())
    earlier = summary.rejected_earlier
    typer.echo(
        f"{summary.rejected} rejected{f' ({rules})' if rules else ''}"
        + (f", {earlier} before (--retry-rejected tries them again)" if earlier else "")
    )
    typer.echo(f"{left_out} left out, {summary.failed} without an answer from the endpoint")
    for reason, count in summary.left_out.most_common():
        typer.echo(f"  {count}: {reason}")
    if cost is not None:
        price = f", {cost['cost']:.4f} in all" if "cost" in cost else ""
        typer.echo(
            f"{cost['requests']} requests ({cost['retries']} retries), {cost['cache_hits']} from the "
            f"cache, {cost['prompt_tokens']} + {cost['completion_tokens']} tokens"
            f"{price}, {cost['seconds']:.0f} s"
        )
        if cost["unmetered"]:
            typer.echo(f"  {cost['unmetered']} answers came without a count of their tokens")
