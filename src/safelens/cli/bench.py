"""`safelens bench`: what a video costs here, SafeLens beside the plain ways of running the same models.

Knows what is typed, drawn and printed. The systems are the matter of `safelens.bench`.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._options import INTERRUPTED, fail
from safelens.cli._paths import UsageError, expand
from safelens.cli._progress import progress

if TYPE_CHECKING:
    from safelens.cascade import SafeLens


WARM_UP = 8
"""Tokens of an answer before the clock."""


def bench(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH...]", help="Videos or folders.", show_default="drawn SafeWorld clips"
        ),
    ] = None,
    bundle: Annotated[
        str, typer.Option(help="Name, directory or hub id of a bundle of a Qwen3-VL with a probe.")
    ] = "tiny",
    true_shape: Annotated[
        bool,
        typer.Option(
            "--true-shape",
            help="In place of a bundle: Qwen3-VL-2B and Florence-2-large in bfloat16 with random "
            "weights, and answers of --length tokens. Needs about 18 GB.",
        ),
    ] = False,
    clips: Annotated[int, typer.Option(min=2, help="Clips that are drawn.")] = 12,
    plain_clips: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many of the videos naive and paper run. They take one after the other, so a "
            "video costs them as much among few.",
            show_default="all",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; systems take turns in each.")] = 3,
    escalated: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of videos that S1 is unsure of.")
    ] = 0.34,
    length: Annotated[
        int | None,
        typer.Option(
            min=100,
            help="Tokens of every answer, that of all systems: no model ends by itself then, and "
            "nothing is guessed.",
            show_default="the model's own; 200 with --true-shape",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where models run, such as cpu or cuda:1.", show_default="automatic"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for all figures, as JSON.")] = None,
) -> None:
    """Time three ways of moderating the same videos with the same weights, in turns.

    naive: the library's processor, model and generate, for every video. paper: S1 and S2 one after the other, each
    reading the whole prompt. ours: as safelens moderate runs it. All read files through the same decoder.
    Exit code 0; 2: wrong use; 130: interrupted.
    """
    from safelens.bundle import BundleError
    from safelens.captioner import CaptionerError
    from safelens.cascade import SafeLens, default_device
    from safelens.video import VideoError
    from safelens.vlm import ModelLoadError

    where = device or default_device()
    try:
        with ExitStack() as stack:
            if paths:
                files = [Path(name) for name in expand(paths, null=False)]
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                files = _draw(folder, clips, 448 if true_shape else 256)
            if true_shape:
                from safelens.bench.shapes import at_true_shape

                length = length or 200
                typer.echo("making models of random weights", err=True)
                lens, theirs = (
                    stack.enter_context(at_true_shape(where, caption_tokens=40)) for _ in range(2)
                )
            else:
                lens, theirs = (
                    stack.enter_context(SafeLens.load(bundle, device=where)) for _ in range(2)
                )
            report = _measure(lens, theirs, files, plain_clips, repeats, escalated, length)
    except (UsageError, BundleError, ModelLoadError, CaptionerError, VideoError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped; nothing was written", INTERRUPTED)
    report = {"models": lens.provenance.bundle, "escalated": escalated, "length": length} | report
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    typer.echo(written(report))


def _draw(folder: Path, clips: int, side: int) -> list[Path]:
    from dataclasses import replace

    from safelens.safeworld import sample_scene
    from safelens.safeworld.encode import USUAL, encode

    files = [folder / f"{number}.mp4" for number in range(clips)]
    for number, file in enumerate(files):
        encode(sample_scene(77, number), replace(USUAL, size=(side, side)), file)
    return files


def _measure(
    lens: SafeLens,
    theirs: SafeLens,
    files: list[Path],
    plain_clips: int | None,
    repeats: int,
    escalated: float,
    length: int | None,
) -> dict[str, Any]:
    """Measure SafeLens, and the same models as the library holds them, which are made of ``theirs``.

    Raises:
        UsageError: a bundle that the plain ways cannot run.
    """
    from safelens.bench import agreement, compare, limits, systems
    from safelens.screen import ProbeReader

    vlm = lens.screener.vlm
    kind = vlm.model.config.model_type
    if not isinstance(lens.screener.reader, ProbeReader) or not kind.startswith("qwen3_vl"):
        raise UsageError(f"bench runs a Qwen3-VL with a probe; this is a {kind}, or has none")
    if lens.deliberator.vlm is not vlm:
        raise UsageError("bench runs bundles whose S2 goes on from S1's cache")
    systems.as_the_library_has_them(theirs)
    unsure = systems.share_unsure(lens, files, escalated)
    few = systems.few_of(files, unsure, min(plain_clips or len(files), len(files)))
    for warm in (
        systems.Naive(theirs, WARM_UP),
        systems.PaperStyle(theirs, WARM_UP, unsure),
        systems.Ours(lens, length and 120),
    ):
        warm.run(few[:2])  # kernels are chosen and buffers made before the clock
    ways: list[tuple[systems.BenchSystem, list[Path]]] = [
        (systems.Naive(theirs, length), few),
        (systems.PaperStyle(theirs, length, unsure), few),
        (systems.Ours(lens, length), files),
    ]
    clips = [systems.clip_of(lens, path) for path in files[:8]]
    with progress("timing", repeats * len(ways)) as bar:

        def advance(name: str) -> None:
            bar.note(name)
            bar.advance()

        report = compare.rounds(ways, repeats, advance)
    best = limits.measure(next(vlm.model.parameters()).dtype, vlm.device)
    alone = compare.screening(lens, theirs, clips, 2 * repeats)
    report["ratio"]["s1_over_plain"] = alone.pop("s1_over_plain")
    return report | {
        "videos": len(files),
        "unsure": len(unsure),
        "s1_alone": alone,
        "limits": {"flops_per_s": best.flops, "bytes_per_s": best.bytes},
        "share_of_limit": compare.shares(lens, clips, best),
        "agreement": agreement.measure(lens, theirs, clips[:4]),
    }


def written(report: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    stages = sorted(
        {s for one in report["systems"].values() for s in one["stage_seconds_per_video"]}
    )
    lines = [
        f"{report['videos']} videos, {report['unsure']} of them for S2; {report['models']}.",
        "",
        "| | videos run | videos a second | tokens a video | "
        + " | ".join(f"{s}, s" for s in stages)
        + " |",
        "|---|" + "---|" * (3 + len(stages)),
    ]
    for name, one in report["systems"].items():
        rate = one["videos_per_second"]
        cells = [
            str(one["videos"]),
            f"{rate['median']:.3g} ({rate['min']:.3g} to {rate['max']:.3g})",
        ]
        cells.append(f"{one['tokens_per_video']:.0f}")
        seconds = one["stage_seconds_per_video"]
        cells += [f"{seconds[s]:.3f}" if s in seconds else "" for s in stages]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [
        f"- {name}: {found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"
        for name, found in report["ratio"].items()
    ]
    best = report["limits"]
    lines.append(
        f"- this machine: {best['flops_per_s'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{best['bytes_per_s'] / 1e9:.1f} GB/s read"
    )
    lines += [
        f"- {stage}: {found['share_of_limit']:.0%} of the limit by {found['bound']}"
        for stage, found in report["share_of_limit"].items()
    ]
    same = report["agreement"]
    s1, s2, clips = same["screen"], same["deliberate"], same["clips"]
    lines += [
        f"- S1 in a batch on the policy's cache beside one pass over the whole prompt, in {same['dtype']}: "
        f"{s1['same_label']} of {clips} labels the same, probabilities within {s1['largest_difference']:.1g}, states "
        f"within {s1['of_states']:.1g} of their length",
        f"- S2 in a batch with guesses beside a token a pass alone: flags of {s2['same_flags']} and texts of "
        f"{s2['same_text']} of {clips} the same, probabilities within {s2['largest_difference']:.1g}",
    ]
    return "\n".join(lines)
