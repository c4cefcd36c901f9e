"""Pictures of an evaluation as SVG that stands inside a page and takes on its colours, light or dark.

Knows axes and lines. Knows nothing of pages. Text stays text, and the same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safelens.evaluate.cases import Cases
from safelens.evaluate.sweep import Sweep
from safelens.reliability import Bin, reliability_diagram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 8
"""Categories in one picture; of more, those that most videos violate."""

INK, GREY, BLUE = "#333333", "#b8b8b8", "#2f6f9f"
LINES = ("#4477aa", "#cc6677", "#228833", "#ab8b2e", "#8c6bb1", "#2a9d9d", "#b35d9e", "#8a8a8a")
"""Of middling lightness, to be told apart on white and on black (after Tol's qualitative schemes)."""
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")

_IN_PAGE = {INK: "var(--ink)", GREY: "var(--axis)", BLUE: LINES[0], "#ffffff": "var(--card)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "safelens",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def sweep_plot(name: str, swept: Sweep, tau: float | None) -> str:
    """Accuracy and runtime over tau (the paper's figure 4), with the share that goes to S2.

    Args:
        name: The system's.
        swept: Its sweep.
        tau: Its own, drawn as a line.
    """
    points = [p for p in swept.points if p.tau is not None and p.tau <= 1]
    taus = [p.tau for p in points]
    drawn: list[tuple[str, list[float | None]]] = [
        ("Avg ACC", [p.avg_acc for p in points]),
        ("Flag F1", [p.f1 for p in points]),
        ("To S2", [p.escalated for p in points]),
    ]
    with _figure((5.2, 5.0)) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for i, (label, values) in enumerate(drawn):
            if None not in values:
                _steps(top, taus, values, i, label)
        top.set(ylabel="Share", ylim=(-0.03, 1.03))
        seconds = [p.seconds for p in points]
        if None not in seconds:
            _steps(bottom, taus, seconds, 0, "Cascade")
            if swept.everything.seconds is not None:
                bottom.axhline(swept.everything.seconds, color=GREY, ls="--", label="S2 on all")
        bottom.set(xlabel="tau", ylabel="Seconds per video", xlim=(-0.02, 1.02), ylim=(0, None))
        for axes in (top, bottom):
            if tau is not None and tau <= 1:
                axes.axvline(tau, color=INK, lw=1, ls=":", label=f"tau {tau:g}")
        _legend(top)
        _legend(bottom)
        return _svg(figure, f"{name}: accuracy and runtime of the cascade over tau")


def tradeoff_plot(name: str, swept: Sweep, tau: float | None) -> str | None:
    """Avg ACC over seconds per video at every tau; None where seconds are not known.

    Args:
        name: The system's.
        swept: Its sweep.
        tau: Its own, marked.
    """
    along = [(p.seconds, p.avg_acc) for p in swept.points if p.seconds is not None]
    whole = swept.everything
    if not along or whole.seconds is None:
        return None
    with _figure((5.2, 3.4)) as figure:
        axes = figure.subplots()
        x, y = zip(*along, strict=True)
        axes.plot(x, y, color=LINES[0], lw=1.2, marker="o", ms=3, label="Cascade, each tau")
        if tau is not None:
            own = swept.at(tau)
            axes.plot(
                [own.seconds or 0], [own.avg_acc], "o", color=LINES[1], ms=8, label=f"tau {tau:g}"
            )
        axes.plot([whole.seconds], [whole.avg_acc], "s", color=LINES[2], ms=7, label="S2 on all")
        axes.set(xlabel="Seconds per video", ylabel="Avg ACC", xlim=(0, None))
        _legend(axes)
        return _svg(figure, f"{name}: accuracy over runtime")


def reliability_plot(name: str, bins: Sequence[Bin]) -> str:
    """The reliability diagram of the confidences as given.

    Args:
        name: The system's.
        bins: What `reliability` gave.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        drawn = reliability_diagram(bins, title="Confidence")
    return _inline(drawn.decode(), f"{name}: reliability diagram", name)


def precision_recall_plot(name: str, cases: Cases) -> str | None:
    """Precision over recall of each category, by its score, of decided answers.

    Args:
        name: The system's.
        cases: Records and answers.

    Returns:
        None where no category that is violated has a score in every decided answer.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    found = []
    for category in cases.policy.labels[:-1]:
        asked = [case for case in cases if case.decided and case.knows(category)]
        truth = [category in case.truth for case in asked]
        if any(truth) and all(category in case.scores for case in asked):
            found.append((sum(truth), category, truth, [c.scores[category] for c in asked]))
    if not found:
        return None
    found = sorted(found, key=lambda one: -one[0])[:MOST_CURVES]
    with _figure((5.2, 4.2 + 0.16 * len(found))) as figure:
        axes = figure.subplots()
        for i, (positives, category, truth, scores) in enumerate(found):
            precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
            area = average_precision_score(truth, scores)
            label = f"{_plain(category)} ({positives}), AP {area:.2f}"
            _steps(axes, recall, precision, i, label, where="post")  # recall falls
        axes.set(xlabel="Recall", ylabel="Precision", xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, borderaxespad=0)
        return _svg(figure, f"{name}: precision over recall of each category")


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _steps(axes: Axes, x: Any, y: Any, index: int, label: str, *, where: Any = "pre") -> None:
    style = {"color": LINES[index % len(LINES)], "linestyle": DASHES[index % len(DASHES)]}
    axes.step(x, y, where=where, label=label, lw=1.8, **style)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.2)


def _plain(text: str) -> str:
    """Text that matplotlib takes for text, not for mathematics."""
    return text.replace("$", r"\$")


def _svg(figure: Figure, words: str) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    return _inline(target.getvalue().decode(), words, words)


def _inline(text: str, words: str, scope: str) -> str:
    """An SVG file as an element of a page: colours of the page, ids that no other picture has, no metadata."""
    import hashlib
    from html import escape

    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (?:\w+ )*([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, ours in _IN_PAGE.items():
        text = text.replace(colour, ours)
    prefix = "p" + hashlib.sha256(f"{words}\n{scope}".encode()).hexdigest()[:8]
    text = re.sub(r'\b(id=")', rf"\g<1>{prefix}-", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    label = f'<svg class="plot" role="img" aria-label="{escape(words)}"'
    text = text.replace("<svg", label, 1)
    # The view box alone scales with the page.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
        count=1,
    )
