import json
import random
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from benchmarks.curation import class_accuracy
from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import NON_ANSWERS
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


def said(name, flags=(), **fields):
    label = fields.pop("label", flags[0] if flags else "safe")
    return Answer(id=str(name), outcome="decided", flags=tuple(flags), label=label, **fields)


def not_said(name, outcome, **fields):
    return Answer(id=str(name), outcome=outcome, error="try again", **fields)


def run(*pairs, **options):
    """Metrics of (labels, answer) pairs; the answer is flags, an outcome, "missing", or an Answer."""
    records, answers = [], {}
    for i, (labels, answer) in enumerate(pairs):
        records.append(record(i, labels))
        if answer == "missing":
            continue
        if answer in NON_ANSWERS:
            answer = not_said(i, answer)
        elif not isinstance(answer, Answer):
            answer = said(i, answer)
        answers[str(i)] = answer.model_copy(update={"id": str(i)})
    return measure(records, answers, ABC, **options)


def scored(flags=(), **scores):
    return said("?", flags, scores=scores)


def draw(rng, names, *, several):
    found = [name for name in names if rng.random() < 0.4]
    rng.shuffle(found)
    return tuple(found if several else found[:1])


def test_a_hand_worked_example():
    found = run(
        ("a", "a"),
        ("a", "b"),
        ("a", ()),
        ("a", "undecided"),
        ("b", "b"),
        ("b", "failed"),
        ((), ()),
        ((), ()),
        ((), "a"),
        ((), "unparsed"),
    )
    assert found.counts.videos == 10
    assert found.counts.decided == 7
    single = found.single_label
    assert {k: v.accuracy for k, v in single.classes.items()} == {
        "a": 1 / 4,
        "b": 1 / 2,
        "c": None,
        "safe": 1 / 2,
    }
    assert single.absent == ("c",)
    assert single.accuracy == 4 / 10
    assert single.accuracy_of_decided == 4 / 7
    assert single.avg_acc == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)
    # F1 = 2 TP / (2 TP + FP + FN)
    assert single.classes["a"].f1 == pytest.approx(2 / (2 + 1 + 3))
    assert single.classes["b"].f1 == pytest.approx(2 / (2 + 1 + 1))
    assert single.classes["safe"].f1 == pytest.approx(4 / (4 + 1 + 2))
    assert single.macro_f1 == pytest.approx((1 / 3 + 1 / 2 + 4 / 7) / 3)
    assert single.confusion.columns == ("a", "b", "c", "safe", *NON_ANSWERS)
    assert single.confusion.counts == (
        (1, 1, 0, 1, 1, 0, 0, 0),
        (0, 1, 0, 0, 0, 0, 1, 0),
        (0, 0, 0, 0, 0, 0, 0, 0),
        (1, 0, 0, 2, 0, 1, 0, 0),
    )
    whole = found.any_violation
    assert (whole.positives, whole.flagged) == (6, 4)
    assert (whole.precision, whole.recall) == (3 / 4, 3 / 6)
    assert whole.f1 == pytest.approx(6 / (6 + 1 + 3))
    assert (whole.accuracy, whole.accuracy_of_decided) == (5 / 10, 5 / 7)
    multi = found.multi_label
    assert (multi.exact_match, multi.exact_match_of_decided) == (4 / 10, 4 / 7)
    assert multi.macro.recall == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert multi.micro.recall == 2 / 6
    assert multi.micro.precision == 2 / 4


@pytest.mark.parametrize("seed", range(16))
def test_single_labels_agree_with_scikit_learn_and_with_the_card(seed):
    rng = random.Random(seed)
    pool = rng.sample("abc", rng.randint(1, 3))
    truth = [draw(rng, pool, several=False) for _ in range(rng.randint(1, 30))]
    answers = [
        rng.choice(NON_ANSWERS) if rng.random() < 0.2 else draw(rng, "abc", several=False)
        for _ in truth
    ]
    found = run(*zip(truth, answers, strict=True)).single_label
    y = [t[0] if t else "safe" for t in truth]
    p = [a if isinstance(a, str) else a[0] if a else "safe" for a in answers]
    occur = sorted(set(y))
    expected = class_accuracy(
        truth, [None if isinstance(a, str) else a[0] if a else "safe" for a in answers]
    )
    assert found.avg_acc == pytest.approx(expected.pop("average"))
    assert {k: v.accuracy for k, v in found.classes.items() if v.videos} == pytest.approx(expected)
    assert found.accuracy == pytest.approx(sk.accuracy_score(y, p))
    assert found.macro_f1 == pytest.approx(
        sk.f1_score(y, p, labels=occur, average="macro", zero_division=0)
    )
    assert set(found.absent) == {"a", "b", "c", "safe"} - set(y)
    columns = list(found.confusion.columns)
    table = sk.confusion_matrix(y, p, labels=columns)
    assert np.array_equal(table[:4], np.array(found.confusion.counts))
    for name in columns[:4]:
        figure = found.classes[name]
        assert figure.videos == y.count(name)
        assert (figure.precision is None) == (name not in p)
        if name in p:
            assert figure.precision == pytest.approx(
                sk.precision_score(y, p, labels=[name], average="macro", zero_division=0)
            )


@pytest.mark.parametrize("seed", range(16))
def test_flags_and_scores_agree_with_scikit_learn(seed):
    """A non-answer flags nothing, has no rank, and is no exact match."""
    rng = random.Random(seed)
    pool = rng.sample("abc", rng.randint(1, 3))
    n = rng.randint(2, 30)
    truth = [draw(rng, pool, several=True) for _ in range(n)]
    scores = [{name: round(rng.random(), 1) for name in "abc"} for _ in range(n)]
    decided = np.array([rng.random() < 0.8 for _ in range(n)])
    flags = [
        tuple(k for k, v in s.items() if v > 0.6 and said)
        for s, said in zip(scores, decided, strict=True)
    ]
    found = run(
        *(
            (t, scored(f, **s) if said else rng.choice(NON_ANSWERS))
            for t, f, s, said in zip(truth, flags, scores, decided, strict=True)
        )
    )
    multi, whole = found.multi_label, found.any_violation
    y = np.array([[name in t for name in "abc"] for t in truth])
    p = np.array([[name in f for name in "abc"] for f in flags])
    s = np.array([list(row.values()) for row in scores])

    def same(figure, y, p, s, ranked):
        assert (figure.videos, figure.positives, figure.flagged) == (len(y), y.sum(), p.sum())
        assert figure.scored == ranked.sum()
        r, s = y[ranked], s[ranked]
        expected = [
            sk.precision_score(y, p, zero_division=0) if p.any() else None,
            sk.recall_score(y, p) if y.any() else None,
            sk.f1_score(y, p) if y.any() else None,
            sk.average_precision_score(r, s) if r.any() else None,
            sk.roc_auc_score(r, s) if r.any() and not r.all() else None,
        ]
        got = [figure.precision, figure.recall, figure.f1, figure.auprc, figure.auroc]
        assert got == [x if x is None else pytest.approx(x) for x in expected]

    for i, name in enumerate("abc"):
        same(multi.categories[name], y[:, i], p[:, i], s[:, i], decided)
    same(multi.micro, y.ravel(), p.ravel(), s.ravel(), decided.repeat(3))
    same(whole, y.any(axis=1), p.any(axis=1), s.max(axis=1), decided)
    exact = decided & (y == p).all(axis=1)
    agree = decided & (y.any(axis=1) == p.any(axis=1))
    assert multi.exact_match == pytest.approx(exact.mean())
    assert whole.accuracy == pytest.approx(agree.mean())
    if decided.any():
        assert multi.exact_match_of_decided == pytest.approx(
            sk.accuracy_score(y[decided], p[decided])
        )
        assert whole.accuracy_of_decided == pytest.approx(agree[decided].mean())
    macro = [multi.macro.precision, multi.macro.recall, multi.macro.f1]
    if y.any():
        expected = sk.precision_recall_fscore_support(
            y, p, labels=np.flatnonzero(y.any(axis=0)), average="macro", zero_division=0
        )[:3]
        assert macro == pytest.approx(expected)
        if (ranked := y[decided]).any(axis=0).sum() == y.any(axis=0).sum():
            occur = y.any(axis=0)
            assert multi.macro.auprc == pytest.approx(
                sk.average_precision_score(ranked[:, occur], s[decided][:, occur], average="macro")
            )
        else:
            assert multi.macro.auprc is None
    else:
        assert macro == [None] * 3


@pytest.mark.parametrize("outcome", NON_ANSWERS)
def test_a_non_answer_is_worth_no_more_than_a_wrong_answer(outcome):
    """Beside eight right answers, on a safe and on a violating video."""
    rest = [("a", "a"), ("b", "b"), ("c", "c"), ((), ())] * 2
    for labels, wrong in (((), "a"), ("a", ())):
        silent, mistaken = (run(*rest, (labels, x)) for x in (outcome, wrong))
        own = "safe" if not labels else "a"
        for one, other in (
            (silent.single_label.accuracy, mistaken.single_label.accuracy),
            (silent.single_label.avg_acc, mistaken.single_label.avg_acc),
            (silent.any_violation.accuracy, mistaken.any_violation.accuracy),
            (silent.multi_label.exact_match, mistaken.multi_label.exact_match),
            (
                silent.single_label.classes[own].accuracy,
                mistaken.single_label.classes[own].accuracy,
            ),
            (silent.any_violation.recall, mistaken.any_violation.recall),
            (silent.multi_label.micro.recall, mistaken.multi_label.micro.recall),
        ):
            assert one == other
        assert getattr(silent.counts, outcome) == 1
        assert silent.counts.decided == 8
        assert silent.single_label.accuracy_of_decided == 1
        assert silent.multi_label.exact_match_of_decided == 1
        assert silent.any_violation.accuracy_of_decided == 1
        assert silent.single_label.confusion.counts["abc".find(own)][4 + NON_ANSWERS.index(outcome)]
        assert sum(row[3] for row in silent.single_label.confusion.counts) == 2


def test_a_system_that_never_answers_is_never_right():
    found = run(("a", "failed"), ((), "undecided"), ((), "unparsed"), ("b", "missing"))
    assert found.single_label.accuracy == 0
    assert found.single_label.avg_acc == 0
    assert found.single_label.macro_f1 == 0
    assert found.single_label.accuracy_of_decided is None
    assert found.single_label.classes["safe"].precision is None
    assert found.any_violation.accuracy == 0
    assert found.any_violation.recall == 0
    assert found.any_violation.f1 == 0
    assert found.any_violation.precision is None
    assert found.any_violation.accuracy_of_decided is None
    assert found.any_violation.auprc is None
    assert found.multi_label.exact_match == 0
    assert found.multi_label.exact_match_of_decided is None


def test_undefined_figures_are_none_not_zero():
    safe = run(((), ()), ((), "a"))
    category = safe.multi_label.categories["a"]
    assert (category.recall, category.f1, category.auprc) == (None, None, None)
    assert category.precision == 0
    assert safe.multi_label.categories["b"].precision is None
    assert safe.multi_label.macro.recall is None
    assert safe.any_violation.recall is None
    assert safe.single_label.classes["a"].f1 is None
    assert safe.single_label.classes["a"].precision == 0
    unflagged = run(("a", ())).multi_label
    assert (unflagged.categories["a"].precision, unflagged.categories["a"].f1) == (None, 0)
    assert unflagged.macro.precision == 0


def test_an_answer_is_right_if_it_names_any_label():
    found = run(("ab", said("?", "ab", label="b")), ("ab", "b"), ("ab", "c")).single_label
    assert found.classes["a"].accuracy == pytest.approx(2 / 3)
    assert found.classes["a"].videos == 3
    assert found.classes["b"].accuracy is None
    assert found.confusion.counts[0][:3] == (2, 0, 1)


def test_order_of_flags_does_not_matter_for_an_exact_match():
    assert run(("ab", "ba"), ("ab", "a"), ("ab", "abc")).multi_label.exact_match == 1 / 3


def test_scores_rank_decided_answers_alone():
    whole = {"b": 0.0, "c": 0.0}
    found = run(
        ("a", scored("a", a=0.9, **whole)),
        ((), scored((), a=0.2, **whole)),
        ("a", not_said("?", "undecided", scores={"a": 0.0, **whole})),
        ((), "missing"),
    )
    category = found.multi_label.categories["a"]
    assert (category.scored, category.auprc, category.auroc) == (2, 1, 1)
    assert (found.any_violation.scored, found.any_violation.auprc) == (2, 1)
    assert found.any_violation.auroc == 1


def test_a_decided_answer_without_a_score_leaves_no_ranking():
    found = run(("a", scored("a", a=0.9, b=0.1, c=0.1)), ((), scored((), a=0.1, b=0.0)), ((), ()))
    category = found.multi_label.categories["a"]
    assert (category.scored, category.auprc, category.auroc) == (2, None, None)
    assert (found.any_violation.scored, found.any_violation.auprc) == (1, None)


def test_any_violation_ranks_by_safe_where_it_is_scored():
    found = run(
        ("a", scored("a", safe=0.3, a=0.4)),
        ("b", scored((), a=0.5, b=0.2, c=0.1)),
        ((), scored((), safe=0.4, a=0.1)),
    ).any_violation
    # 0.7 and 0.5 for what violates, 0.6 for what does not
    assert found.scored == 3
    assert found.auroc == 0.5
    assert found.auprc == pytest.approx((1 + 2 / 3) / 2)


def test_a_category_that_was_not_asked_for_is_in_no_figure_of_its_own():
    records = [
        record(0, "a", asked=("a", "b")),
        record(1, "c"),
        record(2, (), asked=("a",)),
        record(3),
    ]
    answers = {"0": said(0, "ac"), "1": said(1, "c"), "2": said(2), "3": said(3)}
    found = measure(records, answers, ABC)
    assert found.counts.left_out == 1
    assert found.counts.videos == 3
    multi = found.multi_label
    assert {k: v.videos for k, v in multi.categories.items()} == {"a": 3, "b": 3, "c": 2}
    assert multi.categories["c"].precision == 1
    assert (multi.exact_match, multi.exact_match_videos) == (1, 2)
    assert multi.micro.videos == 8
    nothing_known = measure([record(0, "a", asked=("a",))], {}, ABC).multi_label
    assert nothing_known.exact_match is None
    assert nothing_known.categories["b"].videos == 0
    assert nothing_known.categories["b"].recall is None


def test_which_labels_hold():
    records = [record(0, "a", true_labels=("b",)), record(1, "a")]
    answers = {"0": said(0, "b"), "1": said(1, "a")}
    assert measure(records, answers, ABC).single_label.accuracy == 1
    assert measure(records, answers, ABC, truth="labels").single_label.accuracy == 1 / 2


def test_tables_by_scenario_and_difficulty():
    records = [
        record(0, "a", scenario="a/x", difficulty="plain"),
        record(1, "ba", scenario="a/x", difficulty="order"),
        record(2, (), scenario="a/x", difficulty="order"),
        record(3, (), scenario="safe/y"),
        record(4, "a"),
        record(5, "a", scenario="a/x", difficulty="plain"),
    ]
    answers = {
        "0": said(0, "a"),
        "1": said(1, "ab", label="a"),
        "2": not_said(2, "unparsed"),
        "3": said(3),
        "4": said(4),
        "5": not_said(5, "failed"),
    }
    found = measure(records, answers, ABC).to_dict()
    assert found["scenarios"] == {
        "a/x": {
            "videos": 4,
            "decided": 2,
            "accuracy": 2 / 4,
            "violating": 3,
            "recall": pytest.approx(2 / 3),
        },
        "safe/y": {"videos": 1, "decided": 1, "accuracy": 1, "violating": 0, "recall": None},
    }
    assert list(found["difficulties"]) == ["order", "plain"]
    assert found["difficulties"]["plain"]["recall"] == 1 / 2
    assert list(found["sources"]) == ["test"]


def test_real_and_generated_videos_of_safewatch_bench_are_told_apart():
    records = [record(i, "a", scenario="a/x") for i in range(3)]
    sources = ("safewatch-bench/genai", "safewatch-bench/real", "safewatch-bench/real")
    records = [r.model_copy(update={"source": s}) for r, s in zip(records, sources, strict=True)]
    answers = {"0": said(0), "1": said(1, "a"), "2": said(2)}
    found = measure(records, answers, ABC).sources
    assert [(name, one.videos, one.accuracy) for name, one in found.items()] == [
        ("safewatch-bench/genai", 1, 0.0),
        ("safewatch-bench/real", 2, 0.5),
    ]


def test_a_category_may_have_the_name_of_a_non_answer():
    policy = Policy("p", "p", "1", (Category("failed", "Failed", "x", (Rule("blocked", "x"),)),))
    records = [record(0, ("failed",)), record(1, ("failed",))]
    answers = {"0": said(0, ("failed",)), "1": not_said(1, "failed")}
    found = measure(records, answers, policy).single_label
    assert found.accuracy == 1 / 2
    assert found.confusion.counts[0] == (1, 0, 0, 0, 1, 0)


def test_figures_are_json_without_nan():
    for found in (run(("a", "a"), ((), "failed")), run(((), ())), run(("a", "missing"))):
        text = json.dumps(found.to_dict(), allow_nan=False)
        assert json.loads(text)["counts"]["videos"] == found.counts.videos


def test_importing_the_metrics_loads_no_library_of_metrics():
    code = (
        "import sys, safelens.evaluate.metrics, safelens.evaluate.compare, safelens.evaluate.spread;"
        "sys.exit(bool({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
