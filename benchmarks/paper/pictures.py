"""The report's pictures as SVG files.

Knows curves and points. Knows nothing of where their values come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.drawing import drawing, svg
from safelens.evaluate.plots import LINES

_MARKERS = "osD^"


def tau_picture(rows: Sequence[Mapping[str, float | None]]) -> str:
    """Accuracy over operations along tau, and the share that goes to S2 (the paper's figure 4)."""
    drawn = [row for row in rows if row["tau"] is not None and row["tau"] <= 1]
    with drawing(8.4, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        taus = [row["tau"] for row in drawn]
        for number, (key, title) in enumerate((("avg_acc", "Avg ACC"), ("escalated", "To S2"))):
            left.plot(taus, [row[key] for row in drawn], color=LINES[number], label=title)
        left.set(xlabel="tau", ylabel="Share", ylim=(0, 1))
        left.legend(frameon=False)
        right.plot(
            [row["gflops"] for row in drawn],
            [row["avg_acc"] for row in drawn],
            color=LINES[0],
            marker="o",
            ms=3,
        )
        right.set(xlabel="GFLOPs per video", ylabel="Avg ACC")
        return svg(figure)


def grid_picture(pairs: Sequence[Mapping[str, Any]]) -> str:
    """S2's accuracy over seconds and over operations, by embedder and reasoner (the paper's figure 5)."""
    names = list(dict.fromkeys(pair["reasoner"] for pair in pairs))
    with drawing(8.4, 3.6) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        units = (("seconds", "Seconds per video"), ("gflops", "GFLOPs per video"))
        for axes, (unit, title) in zip(panels, units, strict=True):
            for pair in pairs:
                if pair[unit]["mean"] is not None:
                    axes.plot(
                        pair[unit]["mean"],
                        pair["accuracy"]["avg_acc"]["mean"],
                        color=LINES[names.index(pair["reasoner"])],
                        marker=_MARKERS[names.index(pair["embedder"])],
                        linestyle="none",
                        label=f"{pair['embedder']}, {pair['reasoner']}",
                    )
            axes.set(xlabel=title)
        panels[0].set(ylabel="Avg ACC")
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(
            handles, labels, title="Embedder, reasoner", loc="outside right center", frameon=False
        )
        return svg(figure)
