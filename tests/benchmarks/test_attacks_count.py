"""Which clips an attack is put to, where it is not put to all."""

from collections import Counter

import pytest

from benchmarks.attacks import in_turn


@pytest.mark.parametrize(("rows", "clips", "each"), [(196, 17, 4), (5, 3, 2), (7, 4, 100)])
def test_every_attack_meets_as_many_clips_and_every_clip_as_many_attacks(rows, clips, each):
    pairs = in_turn(rows, clips, each)
    assert len(set(pairs)) == len(pairs)
    assert set(Counter(row for row, _ in pairs).values()) == {min(each, clips)}
    by_clip = Counter(clip for _, clip in pairs)
    assert set(by_clip) == set(range(clips))
    assert max(by_clip.values()) - min(by_clip.values()) <= 1
