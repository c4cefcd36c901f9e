"""How honest confidence is: what is said with 80 % confidence should be right in 80 % of cases.

Knows confidences and which answers are right. Does not know where they come from, nor mend them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from safelens.calibrate import CalibrationError, Floats, Screening

BINS = 15
_Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence.

    Attributes:
        lower: Least confidence that belongs here; the bin's edge, or its least member if adaptive.
        upper: Edge to the next bin, which does not belong here unless it is 1; or the largest member.
        count: Answers in it; the figures below are None where there is none.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
        low: Lower end of the accuracy's Wilson 95 % interval.
        high: Upper end.
    """

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None
    low: float | None
    high: float | None


def reliability(
    confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, adaptive: bool = False
) -> tuple[Bin, ...]:
    """Sort answers into bins of confidence.

    Args:
        confidence: Shape (N,), in [0, 1].
        right: Whether the answer is right, shape (N,), bool.
        bins: How many. [k/bins, (k+1)/bins) each, the last with 1.
        adaptive: Bins of equal mass instead. Equal confidences are never parted, so bins can differ
            in size and be fewer.

    Raises:
        CalibrationError: there is no answer.
        ValueError: shapes differ, or a confidence is no probability.
    """
    c, r = np.asarray(confidence, float), np.asarray(right, bool)
    if c.ndim != 1 or c.shape != r.shape:
        raise ValueError(f"expected two arrays of one shape (N,), got {c.shape} and {r.shape}")
    if not ((c >= 0) & (c <= 1)).all():
        raise ValueError("expected confidences in [0, 1]; some are outside or no number")
    if not len(c):
        raise CalibrationError("reliability of no answers; at least one is needed")
    edges = np.linspace(0, 1, bins + 1)
    if adaptive:
        rank = np.searchsorted(np.sort(c), c, side="left")
        place = rank * bins // len(c)
    else:
        place = np.minimum(np.searchsorted(edges, c, side="right") - 1, bins - 1)
    found = []
    for k in range(bins):
        inside = place == k
        n = int(inside.sum())
        if adaptive and not n:
            continue
        lower, upper = (c[inside].min(), c[inside].max()) if adaptive else edges[k : k + 2]
        figures: tuple[float | None, ...] = (None,) * 4
        if n:
            k_right = int(r[inside].sum())
            figures = (float(c[inside].mean()), k_right / n, *wilson(k_right, n))
        found.append(Bin(float(lower), float(upper), n, *figures))
    return tuple(found)


def class_reliability(
    screening: Screening, labels: Sequence[str], *, bins: int = BINS, adaptive: bool = False
) -> dict[str, tuple[Bin, ...]]:
    """Reliability of the answers of each predicted class, which a threshold of its own acts on.

    Args:
        screening: S1's answers.
        labels: Names of the classes.
        bins: See :func:`reliability`.
        adaptive: See :func:`reliability`.

    Returns:
        By class; classes that S1 never answers are left out.
    """
    parts = {
        name: screening.take(screening.predicted == index) for index, name in enumerate(labels)
    }
    return {
        name: reliability(part.confidence, part.right, bins=bins, adaptive=adaptive)
        for name, part in parts.items()
        if len(part)
    }


def ece(bins: Sequence[Bin]) -> float:
    """Expected calibration error: sum over bins of n_b / N * |accuracy_b - confidence_b|.

    Naeini et al. 2015, Guo et al. 2017 eq. 3. That of torchmetrics' MulticlassCalibrationError, but
    that the latter gives confidences of exactly 1 a bin of their own.
    """
    total = sum(b.count for b in bins)
    gaps = (
        b.count * abs(b.accuracy - b.confidence)
        for b in bins
        if b.accuracy is not None and b.confidence is not None
    )
    return sum(gaps) / total


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, k of n > 0 (Wilson 1927).

    (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = k/n.
    """
    p, z2 = k / n, _Z**2
    centre = p + z2 / (2 * n)
    half = _Z * float(np.sqrt(p * (1 - p) / n + z2 / (4 * n**2)))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


def reliability_diagram(
    bins: Sequence[Bin], *, title: str, form: Literal["png", "svg"] = "svg"
) -> bytes:
    """Draw accuracy over confidence with Wilson intervals, and below how many answers there are.

    Args:
        bins: What :func:`reliability` gave.
        title: Stands above; the ECE and the count are added.
        form: Of the picture. The same bins give the same bytes.

    Raises:
        ModuleNotFoundError: matplotlib is absent; it comes with `safelens[evaluate]`.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    full = [b for b in bins if b.count]
    x, y, low, high = (
        np.array([getattr(b, name) for b in full], float)
        for name in ("confidence", "accuracy", "low", "high")
    )
    ink, grey, blue = "#333333", "#b8b8b8", "#2f6f9f"
    style: dict[Any, Any] = {
        "svg.hashsalt": "safelens",
        "font.size": 10,
        "axes.edgecolor": grey,
        "text.color": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.6, 5.4), layout="constrained")
        FigureCanvasAgg(figure)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        top.plot((0, 1), (0, 1), color=grey, linewidth=1, linestyle=(0, (4, 3)))
        top.errorbar(
            x,
            y,
            yerr=_lengths(y, low, high),
            color=blue,
            fmt="o",
            markersize=5,
            elinewidth=1.2,
            capsize=0,
        )
        top.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="Share that is right")
        count = sum(b.count for b in full)
        top.set_title(f"{title}\nECE {ece(bins):.3f}, {count} answers", fontsize=11, loc="left")
        widths = [max(b.upper - b.lower, 0.004) for b in full]
        bottom.bar(
            [b.lower for b in full],
            [b.count for b in full],
            widths,
            align="edge",
            color=grey,
            edgecolor="white",
            linewidth=0.5,
        )
        bottom.set(xlabel="Confidence", ylabel="Answers")
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
        target = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(target, format=form, dpi=150, metadata=metadata)
    return target.getvalue()


def _lengths(y: Floats, low: Floats, high: Floats) -> Floats:
    """Of the error bars, down and up, shape (2, bins); rounding may not make one negative."""
    return np.maximum(np.stack((y - low, high - y)), 0)
