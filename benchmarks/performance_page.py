"""docs/performance.md: the measured figures in tables, and in words what they are of.

Knows tables and what stands between them. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.machine import in_words
from safelens.cli.bench import written as bench_table

_ABOUT = """\
Three ways of moderating the same videos with the same weights, in turns (`safelens bench`): *naive*, the library's
processor, model and `generate` for every video; *paper*, S1 and S2 one after the other, each reading the whole prompt;
*ours*, as `safelens moderate` runs it. All read files through the same decoder. "True shape" is Qwen3-VL-2B with
Florence-2-large in bfloat16 and random weights: what they cost needs no training. There every answer has as many
tokens as every other, none ends by itself, and nothing is guessed ahead, which random weights would make too easy.
*naive* and *paper* take videos one after the other, so a few of them tell what a video costs; *ours* has more of them, as
it writes about up to eight at once. A third of the videos go to S2 in *paper* and *ours*. *naive* and *paper* run the
models as the library has them and under the C library's usual thresholds of memory; decoding files is *ours* everywhere."""


def written(report: Mapping[str, Any], file: Path, picture: str) -> str:
    """The whole page.

    Args:
        report: of `performance.together`.
        file: where it is.
        picture: name of the scaling curves, beside the page.
    """
    lines = [
        "# How fast it is, and what bounds it",
        "",
        f"Machine: {in_words(report['machine'])}. All figures: [{file.name}](../{file}), by "
        f"`{report['command']} --out {file}`. Ratios are of the same round; in brackets the least and the largest.",
        "",
        _ABOUT,
        "",
        "## True shape",
        "",
        bench_table(dict(report["true_shape"])),
        "",
        *_bounds(report["bounds"]),
        "",
        "## The embedded bundle",
        "",
        bench_table(dict(report["tiny"])),
        "",
        "## Decoding",
        "",
        *_decoding(report["decoding"]),
        "",
        "## As work grows",
        "",
        f"![Seconds and memory as work grows]({picture})",
        "",
        *_scaling(report["scaling"]),
    ]
    return "\n".join(lines) + "\n"


def _bounds(found: Mapping[str, Any]) -> list[str]:
    least = found["at_limits"]
    return [
        "If every product ran at the machine's rate of products and every pass read the weights at its rate of memory, all "
        f"else taking no time, a video would take {least['naive']:.1f} s naive and {least['ours']:.1f} s ours (S1 alone "
        f"{least['s1']:.1f} s), a ratio of {least['ours_over_naive']:.2f}: ours describes the frames of unsure videos in "
        "words, which naive does not, and nobody's products get cheaper.",
        "",
        f"S1 for one video under 100 categories takes {found['hundred_categories_over_six']:.2f} times what it takes under "
        "6.",
        "",
        "Where the time goes, by PyTorch's profiler:",
        "",
        *_shares(found["shares_of_time"]),
    ]


def _shares(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    kinds = list(next(iter(found.values())))
    rows = [[name, *(f"{shares[kind]:.0%}" for kind in kinds)] for name, shares in found.items()]
    return [
        "| | " + " | ".join(kinds) + " |",
        "|---" * (1 + len(kinds)) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _decoding(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "Times faster than torchcodec (exact mode) and than seeking with PyAV, in the median; largest distance of a "
        "frame from the time wanted.",
        "",
        "| file | ours | seconds | over torchcodec | over PyAV's seek | off by, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, file in found["files"].items():
        for system in ("exact", "keyframes"):
            one = file["systems"][system]
            faster = [
                f"{one['times_faster_than'][other]['median']:.1f}"
                if other in one["times_faster_than"]
                else "-"
                for other in ("torchcodec", "pyav_seek")
            ]
            cells = [name, system, f"{one['median_s']:.2f}", *faster]
            lines.append("| " + " | ".join([*cells, f"{one['largest_error_s']:.2f}"]) + " |")
    return lines


def _scaling(found: Mapping[str, Any]) -> list[str]:
    memory, last = found["resident_mb"], found["videos"][-1]
    return [
        f"The embedded bundle. S1 for one video under 100 categories takes {found['hundred_categories_over_six']:.1f} "
        f"times what it takes under 6. {last['x']:,} videos in one run took {last['seconds']:,.0f} s; resident memory, "
        f"decoding process included, was {memory['after_100']:.0f} MB after 100, at most {memory['most']:.0f} MB, "
        f"{memory['last']:.0f} MB at the end."
    ]
