from collections import Counter

import pytest

from safelens.safeworld.noise import CLASSES, CONFUSIONS, noisy_labels

ALL = [(), *[(name,) for name in CLASSES[:-1]], ("violence", "illegal"), ("sexual", "extreme")]


@pytest.mark.parametrize("kind", ["symmetric", "confusion"])
@pytest.mark.parametrize("labels", ALL)
def test_an_altered_clip_is_always_wrong(kind, labels):
    for number in range(200):
        noisy = noisy_labels(labels, seed=1, key=f"k{number}", rate=1.0, kind=kind)
        assert set(noisy) != set(labels)
        assert list(noisy) == [name for name in CLASSES if name in noisy]


def test_rate_is_met_and_zero_changes_nothing():
    n, rate = 4000, 0.25
    keys = [f"clip-{number}" for number in range(n)]
    changed = sum(
        noisy_labels(("abuse",), seed=3, key=key, rate=rate) != ("abuse",) for key in keys
    )
    # Four standard deviations of a binomial.
    assert abs(changed - n * rate) < 4 * (n * rate * (1 - rate)) ** 0.5
    assert all(noisy_labels(("abuse",), seed=3, key=key, rate=0.0) == ("abuse",) for key in keys)


def test_a_higher_rate_keeps_the_wrong_labels_of_a_lower_one():
    for number in range(500):
        low = noisy_labels((), seed=3, key=str(number), rate=0.1)
        if low != ():
            assert noisy_labels((), seed=3, key=str(number), rate=0.4) == low


def test_confusions_are_those_of_the_table():
    for name in CLASSES:
        labels = () if name == "safe" else (name,)
        seen = {
            (noisy_labels(labels, seed=5, key=str(number), rate=1.0) or ("safe",))[0]
            for number in range(60)
        }
        assert seen == set(CONFUSIONS[name])


def test_symmetric_is_uniform_over_the_other_classes():
    n = 6000
    seen = Counter(
        (noisy_labels(("illegal",), seed=5, key=str(k), rate=1.0, kind="symmetric") or ("safe",))[0]
        for k in range(n)
    )
    assert set(seen) == set(CLASSES) - {"illegal"}
    chi_square = sum((count - n / 6) ** 2 / (n / 6) for count in seen.values())
    assert chi_square < 20.5  # the 99.9 % point at five degrees of freedom


def test_same_seed_and_key_same_noise_other_seed_other_noise():
    def draw(seed):
        return [
            noisy_labels(("violence",), seed=seed, key=str(k), rate=0.5, kind="symmetric")
            for k in range(100)
        ]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"noise is 1\.5"):
        noisy_labels((), seed=0, key="", rate=1.5)
    with pytest.raises(ValueError, match="'typo': expected one of symmetric, confusion"):
        noisy_labels((), seed=0, key="", rate=0.5, kind="typo")
    with pytest.raises(ValueError, match="'weapons'"):
        noisy_labels(("weapons",), seed=0, key="", rate=0.5)
