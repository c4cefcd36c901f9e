"""Regions of drawn relevance maps, and of a verdict of the whole system."""

import numpy as np
import pytest
from pydantic import ValidationError

from safelens.safewatch.regions import regions_of
from safelens.verdict import Region

EDGES = [0.0, 2.0, 4.0, 6.0, 8.0, 9.0]


def maps_of(*peaks, shape=(5, 4, 8)):
    """Maps with high places (step, row, column, height) on an even ground, summing to 1."""
    maps = np.ones(shape)
    for step, row, column, height in peaks:
        maps[step, row, column] = height
    return maps / maps.sum()


def boxes(found):
    return [(r.left * 8, r.top * 4, r.right * 8, r.bottom * 4) for r in found]


def test_a_region_is_what_is_connected_with_the_most_relevant_place():
    maps = maps_of((1, 1, 2, 40), (1, 1, 3, 30), (1, 2, 3, 20), (1, 3, 7, 39))
    [one] = regions_of(maps, EDGES, "abuse")
    assert boxes([one]) == [(2, 1, 4, 3)]
    assert (one.start_s, one.end_s, one.category) == (2.0, 4.0, "abuse")
    assert one.score == pytest.approx(maps[1, 1:3, 2:4].sum() - maps[1, 2, 2])


def test_the_three_strongest_steps_in_order_of_time():
    maps = maps_of((0, 0, 0, 60), (1, 0, 0, 29), (2, 1, 1, 90), (3, 2, 2, 80), (4, 3, 3, 100))
    found = regions_of(maps, EDGES, "abuse")
    assert [r.start_s for r in found] == [4.0, 6.0, 8.0]
    assert boxes(found) == [(1, 1, 2, 2), (2, 2, 3, 3), (3, 3, 4, 4)]


def test_an_even_map_is_whole_frames():
    found = regions_of(maps_of(), EDGES, "abuse")
    assert boxes(found) == [(0, 0, 8, 4)] * 3
    assert [r.score for r in found] == pytest.approx([0.2] * 3)


def test_a_box_without_inside_is_refused():
    with pytest.raises(ValidationError, match=r"region from 0\.5"):
        Region(start_s=0, end_s=1, category="a", score=0, left=0.5, right=0.5, top=0.0, bottom=1.0)
