from collections import Counter
from itertools import pairwise

import pytest

from safelens.data.records import Record
from safelens.policy import Policy
from safelens.safeworld import SCENARIOS, sample_scene
from safelens.safeworld import policies as module
from safelens.safeworld.policies import POLICIES, labels_under, load_policy

TRUTHS = [
    scene.truth
    for index in range(600)
    for scene in {
        id(s): s for s in (sample_scene(4, index), sample_scene(4, index).twin())
    }.values()
]
DEFAULT = Policy.load("default")


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_has_the_default_categories(name):
    policy = load_policy(name)
    assert policy.labels == DEFAULT.labels
    assert [c.name for c in policy.categories] == [c.name for c in DEFAULT.categories]
    assert {rule.kind for c in policy.categories for rule in c.rules} == {"blocked", "allowed"}


def test_the_five_texts_differ():
    assert len({load_policy(name).sha256 for name in POLICIES}) == 5


def test_standard_is_the_truth_of_the_scene():
    for truth in TRUTHS:
        assert labels_under(truth, "standard") == truth.labels


def test_what_one_policy_blocks_every_stricter_one_blocks():
    for truth in TRUTHS:
        sets = [set(labels_under(truth, name)) for name in POLICIES]
        assert all(milder <= stricter for stricter, milder in pairwise(sets))
        assert sets[0] <= set(DEFAULT.labels) - {"safe"}


def test_the_same_clips_have_different_truth_and_no_policy_is_trivial():
    shares = [sum(bool(labels_under(t, name)) for t in TRUTHS) / len(TRUTHS) for name in POLICIES]
    assert all(a > b + 0.03 for a, b in pairwise(shares)), shares
    for name in POLICIES:
        used = Counter(label for t in TRUTHS for label in labels_under(t, name))
        assert set(used) == set(DEFAULT.labels) - {"safe"}


@pytest.mark.parametrize(
    ("scenario", "violating", "expected"),
    [
        ("violence/street_fight", False, ["violence", "violence", "", "", ""]),
        ("violence/street_fight", True, ["violence"] * 4 + [""]),
        ("sexual/implication", True, ["sexual"] * 3 + ["", ""]),
        ("violence/vandalism", True, ["violence"] * 3 + ["", ""]),
        ("illegal/war", True, ["illegal violence", "illegal violence", "illegal", "illegal", ""]),
        ("safe/walk", False, [""] * 5),
    ],
)
def test_named_cases(scenario, violating, expected):
    truth = next(t for t in TRUTHS if t.scenario == scenario and bool(t.labels) == violating)
    assert [" ".join(labels_under(truth, name)) for name in POLICIES] == expected


def test_two_scenes_at_once_are_judged_each_by_itself():
    truth = next(t for t in TRUTHS if "+" in t.scenario and t.labels)
    parts = truth.scenario.split("+")
    for name in POLICIES:
        singles = {
            label
            for part in parts
            for t in [next(t for t in TRUTHS if t.scenario == part and t.labels)]
            for label in labels_under(t, name)
        }
        assert set(labels_under(truth, name)) == singles


def test_changes_name_scenarios_that_exist():
    names = {s.name for s in SCENARIOS}
    changed = {name for name, _ in (*module._CAUTIOUS_ADDS, *module._STRICT_ADDS)}
    assert changed | module._RELAXED_ALLOWS | module._PERMISSIVE_ALLOWS <= names


def test_a_record_counts_by_its_true_labels():
    record = Record(
        id="a", video="a.mp4", labels=(), source="safeworld", true_labels=("illegal",),
        scenario="illegal/arson",
    )  # fmt: skip
    assert labels_under(record, "permissive") == ("illegal",)
    with pytest.raises(ValueError, match="only SafeWorld's records"):
        labels_under(record.model_copy(update={"scenario": None}), "strict")
    with pytest.raises(ValueError, match="'lax': expected one of strict, cautious"):
        labels_under(record, "lax")
