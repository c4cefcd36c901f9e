import json
import random

import numpy as np
import pytest
from scipy import stats

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import NON_ANSWERS, EvaluationError
from safelens.evaluate.compare import RESAMPLES, bootstrap_differences, compare, holm, mcnemar
from safelens.evaluate.metrics import measure
from safelens.policy import Category, Policy, Rule

ABC = Policy(
    "abc",
    "abc",
    "1",
    tuple(Category(name, name.upper(), "x", (Rule("blocked", "x"),)) for name in "abc"),
)


def record(name, labels=(), **fields):
    return Record(id=str(name), video="v.mp4", labels=tuple(labels), source="test", **fields)


def answer(name, what):
    if what in NON_ANSWERS:
        return Answer(id=str(name), outcome=what, error="try again")
    flags = () if what == "safe" else (what,)
    return Answer(id=str(name), outcome="decided", flags=flags, label=what)


def system(said):
    return {str(i): answer(i, what) for i, what in enumerate(said) if what != "missing"}


def two_systems(seed, n):
    rng = random.Random(seed)
    labels = [rng.choice(["a", "a", "b", "safe"]) for _ in range(n)]
    records = [record(i, () if label == "safe" else label) for i, label in enumerate(labels)]

    def draw(share):
        return [
            label
            if rng.random() < share
            else rng.choice(["a", "b", "c", "safe", "undecided", "failed", "unparsed"])
            for label in labels
        ]

    return records, system(draw(0.8)), system(draw(0.5))


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(6))
def test_mcnemar_is_twice_the_smaller_binomial_tail(first, second):
    n = first + second
    tail = stats.binom.cdf(min(first, second), n, 0.5) if n else 1.0
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_by_hand():
    assert mcnemar(0, 5) == 2 / 2**5
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def test_holm_by_hand():
    # Holm 1979: 0.01 * 4, 0.03 * 2 raised over 0.02 * 3, 0.04 * 1 raised
    assert holm({"w": 0.02, "x": 0.04, "y": 0.01, "z": 0.03}) == pytest.approx(
        {"w": 0.06, "x": 0.06, "y": 0.04, "z": 0.06}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
    assert holm({}) == {}


@pytest.mark.parametrize("seed", range(20))
def test_holm_rejects_what_stepping_down_rejects(seed):
    rng = np.random.default_rng(seed)
    p = dict(enumerate(rng.choice([0.001, 0.01, 0.02, 0.05, 0.3], size=rng.integers(1, 8))))
    for alpha in (0.01, 0.05, 0.1):
        rejected = set()
        for step, name in enumerate(sorted(p, key=p.get)):
            if p[name] > alpha / (len(p) - step):
                break
            rejected.add(name)
        assert {name for name, value in holm(p).items() if value <= alpha + 1e-12} == rejected


def test_the_bootstrap_draws_what_resampling_videos_draws():
    """Against drawing indices of videos with replacement, and against the variance in closed form."""
    table = np.array([(40, 12, 5), (7, 0, 3), (5, 0, 0)])
    drawn = bootstrap_differences(table, seed=1)
    assert drawn.shape == (RESAMPLES, 3)
    rng = np.random.default_rng(2)
    for column, (n, first, second) in zip(drawn.T, table, strict=True):
        d = np.array([1] * first + [-1] * second + [0] * (n - first - second))
        plain = d[rng.integers(0, n, size=(RESAMPLES, n))].mean(axis=1)
        deviation = d.std() / n**0.5
        assert column.mean() == pytest.approx(d.mean(), abs=5 * deviation / RESAMPLES**0.5)
        assert column.std() == pytest.approx(deviation, rel=0.03)
        assert stats.ks_2samp(column, plain).pvalue > 0.001
    # Classes are drawn apart from each other.
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.05


def test_the_interval_is_that_of_scipy():
    records, first, second = two_systems(0, 120)
    found = compare(records, first, second, ABC, seed=3)
    groups = []
    for name in found.classes:
        ids = [r.id for r in records if r.label == name]
        groups.append(
            np.array([(first[i].label == name, second[i].label == name) for i in ids], float)
        )
    difference = np.array([g[:, 0] - g[:, 1] for g in groups], dtype=object)
    expected = stats.bootstrap(
        tuple(np.asarray(d, float) for d in difference),
        lambda *d, axis: np.mean([x.mean(axis=axis) for x in d], axis=0),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_accuracies_are_those_of_the_metrics(seed):
    records, first, second = two_systems(seed, 50)
    found = compare(records, first, second, ABC)
    one, other = (measure(records, x, ABC).single_label for x in (first, second))
    assert found.first_avg_acc == pytest.approx(one.avg_acc)
    assert found.second_avg_acc == pytest.approx(other.avg_acc)
    assert found.difference == pytest.approx(one.avg_acc - other.avg_acc)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert (found.overall.first, found.overall.second) == (one.accuracy, other.accuracy)
    assert list(found.classes) == [name for name in ABC.labels if one.classes[name].videos]
    for name, figure in found.classes.items():
        assert (figure.first, figure.second) == pytest.approx(
            (one.classes[name].accuracy, other.classes[name].accuracy)
        )
        assert figure.p_value == mcnemar(figure.first_only, figure.second_only)
        assert figure.p_value <= figure.p_holm <= 1
    assert sum(figure.first_only for figure in found.classes.values()) == found.overall.first_only
    swapped = compare(records, second, first, ABC)
    assert swapped.difference == -found.difference
    assert swapped.overall.p_value == found.overall.p_value


def test_seeds_decide():
    records, first, second = two_systems(0, 60)
    one, same, other = (compare(records, first, second, ABC, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one.interval != other.interval
    assert one.difference == other.difference
    json.dumps(one.to_dict(), allow_nan=False)


def test_a_system_beside_itself_does_not_differ():
    records, first, _ = two_systems(0, 30)
    found = compare(records, first, first, ABC)
    assert (found.difference, found.interval, found.overall.p_value) == (0, (0, 0), 1)


@pytest.mark.parametrize("outcome", ["undecided", "unparsed", "failed"])
def test_a_non_answer_is_wrong_for_the_system_that_gave_it(outcome):
    records = [record(0), record(1, "a"), record(2, "a")]
    found = compare(records, system(["safe", "a", "a"]), system([outcome, outcome, "a"]), ABC)
    assert (found.overall.first_only, found.overall.second_only) == (2, 0)
    assert (found.classes["safe"].second, found.classes["a"].second) == (0, 0.5)


def test_systems_on_different_records_are_refused_by_name():
    records = [record(i) for i in range(4)]
    first, second = (
        system(["safe", "missing", "safe", "missing"]),
        system(["safe", "safe", "missing", "missing"]),
    )
    with pytest.raises(
        EvaluationError, match="the first has no answer on '1'; the second has no answer on '2'"
    ):
        compare(records, first, second, ABC)
    many = [record(i) for i in range(30)]
    with pytest.raises(EvaluationError, match=r"the second has no answer on .* and 20 more"):
        compare(many, system(["safe"] * 30), {}, ABC)


def test_a_record_without_answers_is_wrong_for_both():
    found = compare(
        [record(0), record(1)], system(["safe", "missing"]), system(["safe", "missing"]), ABC
    )
    assert (found.overall.first, found.overall.second) == (0.5, 0.5)


def test_records_without_truth_are_left_out():
    records = [record(0), record(1, (), asked=("a",))]
    found = compare(records, system(["safe", "safe"]), system(["safe", "safe"]), ABC)
    assert (found.overall.videos, found.left_out) == (1, 1)
