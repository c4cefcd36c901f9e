"""On-screen phrases: each has a harmless twin of one shape, and no phrase stands on both sides."""

import pytest

from safelens.safeworld.wording import HEADLINES, INSULTS, INVITATIONS, SLOGANS


@pytest.mark.parametrize("pairs", [INVITATIONS, INSULTS, HEADLINES, SLOGANS])
def test_twins_differ_in_one_word_of_equal_length(pairs):
    assert len(pairs) >= 8
    for bad, good in pairs:
        one, other = " ".join(bad).split(), " ".join(good).split()
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
        assert [len(word) for word in one] == [len(word) for word in other]
        assert max(map(len, bad)) <= 14
    phrases = [phrase for pair in pairs for phrase in pair]
    assert len(set(phrases)) == len(phrases)
