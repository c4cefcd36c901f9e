"""Figures of reports as SVG files: words stay words, and the same figures give the same bytes.

Knows style and file format. Knows no curve.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib as mpl

from safelens.evaluate.plots import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "safelens", "text.color": INK}


@contextmanager
def drawing(width: float, height: float, font: float = 10) -> Iterator[Figure]:
    """An empty figure, in inches, in the reports' style as long as the context lasts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE | {"font.size": font}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def svg(figure: Figure) -> str:
    """The file's text."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue().decode()
