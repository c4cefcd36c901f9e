"""`safelens bundle`: put trained parts together, check a bundle, say what is in it.

Knows the arguments and what is printed. What is checked and how a bundle is written is the matter of
`safelens.pack`; what a bundle is, of `safelens.bundle`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._options import (
    BAD_USAGE,
    FAILED,
    EncodingName,
    EncodingOption,
    FramePixels,
    LayoutName,
    LayoutOption,
    PolicyName,
    PruneLayer,
    PruneOption,
    encoding_of,
    fail,
)

if TYPE_CHECKING:
    from safelens.bundle import Bundle

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="A bundle is a directory with all that a verdict depends on: models, probe, policy, settings.",
)

DEFAULT_CAPTIONER = "florence-community/Florence-2-large"  # as `safelens.captioner` has it

Source = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="Directory, packaged name or hub id.")
]


class Outside(StrEnum):
    """What happens to a clip that the domain guard does not know."""

    escalate = "escalate"
    refuse = "refuse"


@app.command()
def pack(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The bundle to write.")],
    name: Annotated[str, typer.Option(help="What the bundle is called in every verdict.")],
    model: Annotated[
        str,
        typer.Option(
            help="The embedder: a directory is copied, a hub id (owner/name) referred to."
        ),
    ],
    probe: Annotated[
        Path | None,
        typer.Option(help="Directory of the probe.", show_default="S1 scores the label answers"),
    ] = None,
    domain: Annotated[
        Path | None, typer.Option(help="File of the domain guard.", show_default="no guard")
    ] = None,
    captioner: Annotated[
        str, typer.Option(help="Florence-2: directory or hub id.")
    ] = DEFAULT_CAPTIONER,
    adapter: Annotated[
        str | None, typer.Option(help="S2 as a LoRA adapter that continues S1's cache.")
    ] = None,
    reasoner: Annotated[
        str | None, typer.Option(help="S2 as a model of its own: directory or hub id.")
    ] = None,
    policy: PolicyName = "default",
    version: Annotated[str, typer.Option(help="Of the bundle.")] = "1",
    tau: Annotated[
        float, typer.Option(min=0, max=1.01, help="Confidence from which S1's answer stands.")
    ] = 0.9,
    knows: Annotated[
        str | None, typer.Option(help="What the bundle is limited to; printed with every verdict.")
    ] = None,
    outside_domain: Annotated[
        Outside, typer.Option(help="What happens to a clip that the domain guard does not know.")
    ] = Outside.escalate,
    temperature: Annotated[float, typer.Option(help="Divides the probe's logits.")] = 1.0,
    card: Annotated[
        Path | None,
        typer.Option(help="Markdown; what it was trained on, figures.", show_default="generated"),
    ] = None,
    layout: LayoutOption = LayoutName.policy_first,
    policy_encoding: EncodingOption = EncodingName.sequential,
    prune: PruneOption = None,
    prune_layer: PruneLayer = None,
    other_policies: Annotated[
        bool,
        typer.Option(
            "--other-policies",
            help="Take policies of other categories too: only where the models were trained to judge by policies "
            "that they have not seen.",
        ),
    ] = False,
    frame_pixels: FramePixels = 448 * 448,
    max_side: Annotated[
        int, typer.Option(min=1, help="Longest side of a decoded frame, in pixels.")
    ] = 448,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="S2's budget for description and explanation.")
    ] = 256,
    max_caption_tokens: Annotated[int, typer.Option(min=1, help="Budget of a caption.")] = 96,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a bundle that lies there.")
    ] = False,
) -> None:
    """Put trained parts into a bundle.

    Everything is checked before anything is written. Exit code 0; 2: something is wrong, and nothing
    was written.
    """
    from safelens.bundle import BundleError
    from safelens.bundle_parts import Parts
    from safelens.pack import pack as pack_parts
    from safelens.policy import Policy, PolicyError

    encoding = encoding_of(policy_encoding, prune, prune_layer)
    if adapter is not None and reasoner is not None:
        fail("--adapter continues S1's cache, --reasoner is a model apart: give one of them")
    try:
        parts = Parts(
            model=model,
            captioner=captioner,
            policy=Policy.load(policy),
            probe=probe,
            domain=domain,
            reasoner=reasoner,
            adapter=adapter,
            card=None if card is None else card.read_text(encoding="utf-8"),
        )
    except PolicyError as error:
        fail(str(error))
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--card {card}: cannot be read: {error}")
    settings: dict[str, Any] = {
        "name": name,
        "version": version,
        "knows": knows,
        "layout": layout.value,
        "tau": tau,
        "outside_domain": outside_domain.value,
        "clip": {"max_side": max_side},
        "screen": {"frame_pixels": frame_pixels, "temperature": temperature},
        "deliberate": {
            "max_new_tokens": max_new_tokens,
            "max_caption_tokens": max_caption_tokens,
        },
    }
    if encoding.policy == "parallel":
        settings["policy_encoding"] = encoding.policy
    if encoding.keep is not None:
        settings["prune"] = {"keep": encoding.keep, "layer": encoding.layer}
    if other_policies:
        settings["other_policies"] = True
    try:
        packed = pack_parts(parts, out, settings, replace_bundle=replace)
    except BundleError as error:
        fail(str(error))
    for note in packed.notes:
        typer.echo(note, err=True)
    if adapter is None and reasoner is None:
        typer.echo("neither --adapter nor --reasoner: S2 is the embedder itself", err=True)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    typer.echo(f"{out}: {size / 1e6:.1f} MB, SHA-256 {packed.sha256}")


@app.command()
def check(source: Source) -> None:
    """Compare every digest, and load every part.

    Exit code 0: all is well; 1: it is damaged, or a part does not load.
    """
    from safelens.bundle import BundleError
    from safelens.captioner import CaptionerError
    from safelens.cascade import SafeLens
    from safelens.vlm_loading import ModelLoadError, quiet

    bundle = _load(source, FAILED)
    typer.echo(f"{source}: {len(bundle.settings.files)} files have their digests")
    try:
        with quiet(), SafeLens.load(bundle.folder):
            pass
    except (BundleError, ModelLoadError, CaptionerError) as error:
        fail(str(error), FAILED)
    typer.echo(f"{source}: all parts load; SHA-256 {bundle.sha256}")


@app.command()
def show(
    source: Source,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is in a bundle. Every digest is compared; no model is loaded."""
    bundle = _load(source, BAD_USAGE)
    about = _about(bundle)
    if as_json:
        typer.echo(json.dumps(about, ensure_ascii=False))
        return
    typer.echo(f"{about['name']} {about['version']}: {bundle.folder}")
    typer.echo(f"sha256          {about['sha256']}")
    typer.echo(f"knows           {about['knows'] or 'not stated'}")
    typer.echo(f"policy          {about['policy']}: {', '.join(about['labels'])}")
    typer.echo(f"S1 stands at    {bundle.settings.thresholds}")
    typer.echo(f"outside domain  {about['outside_domain']}")
    typer.echo(f"calibrated      {about['calibration'] or 'no'}")
    typer.echo(f"layout          {about['layout']}")
    if bundle.settings.policy_encoding == "parallel":
        prune = bundle.settings.prune
        kept = "all" if prune is None else f"{prune.keep:g}"
        typer.echo(f"policy          each category read alone; {kept} of a video's tokens kept")
    for name, part in about["parts"].items():
        where = f"{part['mb']:.1f} MB, inside" if part["inside"] else "on the model hub"
        typer.echo(f"{name:<15} {part['place']} ({where})")
    for name in sorted({"probe", "domain"} - about["parts"].keys()):
        typer.echo(f"{name:<15} none")


def _about(bundle: Bundle) -> dict[str, Any]:
    s = bundle.settings
    places = {
        "model": s.screen.model,
        "probe": s.screen.probe,
        "domain": s.screen.domain,
        "captioner": s.deliberate.captioner,
        "reasoner": s.deliberate.model,
        "adapter": s.deliberate.adapter,
    }
    sizes = {name: (bundle.folder / name).stat().st_size for name in s.files}
    parts = {
        name: {
            "place": place,
            "inside": s.holds(place),
            "mb": sum(n for f, n in sizes.items() if f == place or f.startswith(f"{place}/")) / 1e6,
        }
        for name, place in places.items()
        if place is not None
    }
    fields = s.model_dump(mode="json", exclude={"files", "policy"})
    return {
        **fields,
        "sha256": bundle.sha256,
        "policy": bundle.policy.id,
        "policy_sha256": bundle.policy.sha256,
        "labels": list(bundle.policy.labels),
        "parts": parts,
    }


def _load(source: str, code: int) -> Bundle:
    from safelens.bundle import Bundle, BundleError

    try:
        return Bundle.load(source)
    except BundleError as error:
        fail(str(error), code)
