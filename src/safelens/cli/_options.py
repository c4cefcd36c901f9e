"""Arguments that several commands share, exit codes, and how a command says that it cannot go on.

Knows what is typed. Does not know what is done with it.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from safelens.assembly import Encoding

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130
LONGEST_S = 86_400.0
"""The longest that one answer of an endpoint may take."""


class LayoutName(StrEnum):
    """Order of the prompt."""

    policy_first = "policy_first"
    video_first = "video_first"


class EncodingName(StrEnum):
    """How a policy is read."""

    sequential = "sequential"
    parallel = "parallel"


Data = Annotated[Path, typer.Argument(help="Data set of any form that `safelens data` reads.")]
VideosRoot = Annotated[
    Path | None,
    typer.Option(
        "--videos-root",
        metavar="DIR",
        help="Where the videos are. A path that leads nowhere is looked for by its ending there.",
        show_default="beside each file",
    ),
]
PolicyName = Annotated[str, typer.Option("--policy", help="Policy file or name.")]
Embedder = Annotated[str, typer.Option("--model", help="The embedder: directory or hub id.")]
FramePixels = Annotated[int, typer.Option(min=1, help="Pixels of a frame as the model sees it.")]
ReadCaptions = Annotated[
    bool,
    typer.Option(
        "--read-captions",
        help="The records' captions stand in the prompt, behind the question: what a caption tells, a "
        "small model need not see (not the paper's).",
    ),
]
LayoutOption = Annotated[LayoutName, typer.Option("--layout", help="Order of the prompt.")]
EncodingOption = Annotated[
    EncodingName,
    typer.Option(
        "--policy-encoding",
        help="The policy as one text; or parallel, each category read alone. What is trained in one encoding is "
        "used in that one.",
    ),
]
PruneOption = Annotated[
    float | None,
    typer.Option(
        "--prune",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        help="Keep this share of a video's tokens, those that the policy looks at most; with a parallel policy.",
        show_default="all",
    ),
]
PruneLayer = Annotated[
    int | None,
    typer.Option(
        "--prune-layer",
        min=0,
        help="Layer at which --prune measures what the policy looks at.",
        show_default="the middle one",
    ),
]
RandomPrune = Annotated[
    bool,
    typer.Option(
        "--random-prune",
        help="Each batch keeps a share of its own, from --prune's to all: one model for any share.",
    ),
]
ProbeSteps = Annotated[int, typer.Option("--steps", min=1, help="Most optimizer steps of a probe.")]
ProbeRate = Annotated[float, typer.Option("--lr", min=0, help="Learning rate of AdamW.")]
ScreenBatch = Annotated[
    int, typer.Option("--batch", min=1, help="Clips that are screened together.")
]


def encoding_of(
    policy: EncodingName,
    prune: float | None,
    layer: int | None,
    *,
    random_prune: bool = False,
) -> Encoding:
    """How policy and video are read; ends the command where options do not fit together."""
    from safelens.assembly import Encoding, EncodingError

    if prune is None and (random_prune or layer is not None):
        option = "--random-prune" if random_prune else "--prune-layer"
        fail(f"{option} is about the share that --prune keeps; add --prune SHARE")
    try:
        return Encoding(policy.value, prune, layer)
    except EncodingError as error:
        fail(str(error))


def fail(message: str, code: int = BAD_USAGE) -> NoReturn:
    """Say why the command ends, and end it."""
    typer.echo(message if code == INTERRUPTED else f"error: {message}", err=True)
    raise typer.Exit(code) from None
