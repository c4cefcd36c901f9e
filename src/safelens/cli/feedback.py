"""`safelens feedback`: moderators' decisions on a service become a data set.

Knows the folder that is written. What a decision teaches is the matter of `safelens.service.feedback`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safelens.cli._options import FAILED, fail
from safelens.cli._progress import progress
from safelens.cli._service import Server, api_key, needs_service

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def feedback(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write or to bring up to date.")
    ],
    server: Server,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256",
            help="Decisions under this policy; labels of different ones do not mean the same.",
            show_default="the active one",
        ),
    ] = None,
) -> None:
    """Write records.jsonl and the videos, as `safelens data`, `curate` and `calibrate` read them.

    Of each video the last decision counts; what is escalated, or not kept any more, is left out. The key
    must be a moderator's. Videos that are there are not downloaded again.
    """
    with needs_service("remote"):
        from safelens.data.records import read_records, write_records
        from safelens.service.client import ServiceClient, ServiceError
    key = api_key()
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "records.jsonl"
        with ServiceClient(server, key) as client:
            part = out / ".records.part"
            part.write_text("".join(f"{line}\n" for line in client.records(policy)), "utf-8")
            found = read_records(part)
            (out / "videos").mkdir(exist_ok=True)
            with progress("videos", len(found)) as bar:
                for record in found:
                    target = out / "videos" / record.id
                    if not target.exists():
                        half = target.with_name(f".{record.id}.part")
                        client.media(record.id, half)
                        half.replace(target)
                    bar.advance()
            write_records(file, found)
            part.unlink()
    except (ServiceError, ValueError) as error:
        fail(str(error), FAILED)
    except OSError as error:
        fail(f"cannot write: {error}", FAILED)
    typer.echo(f"{len(found)} records: {file}")
