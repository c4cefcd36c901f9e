"""From relevance maps to regions: in which frames, and where in them, a category looked most.

Knows maps and boxes. Knows nothing of models or pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safelens.verdict import Region

_MOST = 3
"""Most regions of a category: those that hold most of its relevance."""


def regions_of(maps: np.ndarray, edges: Sequence[float], category: str) -> list[Region]:
    """The regions in which a category looked most, in order of time.

    Each temporal step has one: around its most relevant place, all connected places that are at least half
    as relevant. Only the steps count whose most relevant place is at least half as relevant as the video's.

    Args:
        maps: relevance of each place of each step, shape (S, H, W), summing to 1.
        edges: where each step begins, and where the last one ends, S + 1 seconds.
        category: its id.
    """
    found = []
    for step, places in enumerate(maps):
        if places.max() < maps.max() / 2:
            continue
        inside = _around_peak(places)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        height, width = places.shape
        found.append(
            Region(
                start_s=edges[step],
                end_s=edges[step + 1],
                category=category,
                score=min(1.0, float(places[inside].sum())),
                left=columns[0] / width,
                top=rows[0] / height,
                right=(columns[-1] + 1) / width,
                bottom=(rows[-1] + 1) / height,
            )
        )
    most = sorted(found, key=lambda region: -region.score)[:_MOST]
    return sorted(most, key=lambda region: region.start_s)


def _around_peak(places: np.ndarray) -> np.ndarray:
    """The places at least half as high as the peak that are connected with it by their sides, bool (H, W)."""
    high = places >= places.max() / 2
    inside = np.zeros_like(high)
    inside[np.unravel_index(places.argmax(), places.shape)] = True
    while True:
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        grown &= high
        if (grown == inside).all():
            return inside
        inside = grown
