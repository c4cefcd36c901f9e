"""The grid of backbones in Markdown: our figures, and the paper's beside them.

Knows tables. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.paper.backbones import FAMILIES, STEPS
from benchmarks.paper.pages import form, ours, per_cent, printed, table
from benchmarks.paper.printed import (
    BACKBONES,
    S1_TEST,
    S1_VALIDATION,
    S2_TEST,
    S2_VALIDATION,
)
from recipes.tiny.__main__ import EMBEDDER

LIKE = dict(zip(FAMILIES, BACKBONES, strict=True))
"""Our families and the paper's models of the same rank in size."""
SETS_S1 = {"SafeWatch-GenAI": S1_TEST, "SafeWatch-Real": S1_VALIDATION}
SETS_S2 = {"SafeWatch-GenAI": S2_TEST, "SafeWatch-Real": S2_VALIDATION}


def written_grid(found: Mapping[str, Any]) -> str:
    """The page's part on embedders and reasoners of three families."""
    names = ", ".join(f"{name} for {paper}" for name, paper in LIKE.items())
    lines = [
        "## Tables 4 to 7 and figure 5: other embedders and reasoners",
        "",
        f"Three families of models, each of another size: {names}. One training each, so nothing here is known to "
        f"exceed the noise of training; the first {found['videos']} test videos. Qwen3-VL is seed 0 of the tables "
        f"above; the others learned shorter, {STEPS['embedder']['steps']} steps from the labels in place of "
        f"{EMBEDDER.settings['steps']}. Where both are one family, S2 goes on from S1's cache; else the reasoner "
        "reads the video itself, and its cost holds both. Seconds are of runs at different times on the machine named "
        "above; operations depend on no machine.",
        "",
        "S1 by embedder:",
        "",
        *table(
            [
                *(ours(one["embedder"], one["accuracy"]) for one in found["s1"]),
                *(
                    printed(f"{LIKE[name]}, {videos}", rows[LIKE[name]])
                    for videos, rows in SETS_S1.items()
                    for name in FAMILIES
                ),
            ]
        ),
        "",
        "S2 by embedder and reasoner:",
        "",
        *table(
            [
                *(ours(_named(one), one["accuracy"]) for one in found["s2"]),
                *(
                    printed(
                        f"{LIKE[one['embedder']]}, {LIKE[one['reasoner']]}, {videos}",
                        rows[LIKE[one["embedder"]], LIKE[one["reasoner"]]],
                    )
                    for videos, rows in SETS_S2.items()
                    for one in found["s2"]
                ),
            ]
        ),
        "",
        "![Accuracy over cost of embedders and reasoners](paper-grid.svg)",
        "",
        "| | Avg ACC | seconds | GFLOPs |",
        "|---|---|---|---|",
        *(_cost(f"S1, {one['embedder']}", one) for one in found["s1"]),
        *(_cost(f"S2, {_named(one)}", one) for one in found["s2"]),
    ]
    return "\n".join(lines) + "\n"


def _named(one: Mapping[str, Any]) -> str:
    return f"{one['embedder']}, {one['reasoner']}"


def _cost(name: str, one: Mapping[str, Any]) -> str:
    cells = [per_cent(one["accuracy"]["avg_acc"])]
    cells += [form(one["seconds"], 1, "{:.3f}"), form(one["gflops"], 1, "{:.2f}")]
    return f"| {name} | " + " | ".join(cells) + " |"
