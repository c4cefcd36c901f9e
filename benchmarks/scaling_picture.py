"""The curves of `benchmarks.scaling` as one SVG file.

Knows axes and panels. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.drawing import drawing, svg
from safelens.evaluate.plots import LINES


def curves(report: Mapping[str, Any]) -> str:
    """Seconds a video over what grows, with the fastest and slowest repeat, and the memory of a long run."""
    with drawing(9.6, 5.4, font=9) as figure:
        panels = figure.subplots(2, 3).flat
        frames = report["frames"]
        for axes, title, lines in (
            (panels[0], "frames of a video", {"S1": frames["s1"], "S1, S2": frames["s1_and_s2"]}),
            (panels[1], "categories of the policy", {"S1": report["categories"]}),
            (panels[2], "videos in a batch", {"S1": report["batch"]}),
            (panels[3], "share for S2", {"cascade, from file": report["escalated"]}),
        ):
            for (name, points), colour in zip(lines.items(), LINES, strict=False):
                x = [point["x"] for point in points]
                axes.plot(
                    x, [p["median_s"] for p in points], color=colour, marker="o", ms=3, label=name
                )
                low, high = ([p[key] for p in points] for key in ("min_s", "max_s"))
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set(xlabel=title, ylabel="seconds a video", ylim=(0, None))
            axes.legend(frameon=False)
        videos = report["videos"]
        x = [point["x"] for point in videos]
        for axes, key, title in (
            (panels[4], "seconds", "seconds"),
            (panels[5], "resident_mb", "resident memory, MB"),
        ):
            axes.plot(x, [point[key] for point in videos], color=LINES[0])
            axes.set(xlabel="videos of a run", ylabel=title, ylim=(0, None))
        return svg(figure)
