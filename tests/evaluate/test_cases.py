import pytest

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import NON_ANSWERS, EvaluationError, pair


def record(name, labels=(), **fields):
    return Record(id=name, video="v.mp4", labels=labels, source="test", **fields)


def said(name, *flags, **fields):
    return Answer(
        id=name, outcome="decided", flags=flags, label=flags[0] if flags else "safe", **fields
    )


def one(record, answer, policy, **options):
    (case,) = pair([record], {} if answer is None else {record.id: answer}, policy, **options)
    return case


def test_true_labels_hold_unless_the_given_ones_are_asked_for(policy):
    noisy = record("r", ("abuse",), true_labels=("sexual", "violence"))
    case = one(noisy, said("r", "violence"), policy)
    assert (case.truth, case.label, case.right) == (("sexual", "violence"), "sexual", True)
    case = one(noisy, said("r", "violence"), policy, truth="labels")
    assert (case.truth, case.label, case.right) == (("abuse",), "abuse", False)
    assert one(record("r", ("abuse",)), None, policy).truth == ("abuse",)


def test_a_safe_truth_that_is_known_holds_whatever_the_labels_say(policy):
    noisy = record("r", ("abuse",), true_labels=())
    assert one(noisy, said("r"), policy).right
    assert not one(noisy, said("r", "abuse"), policy).right


def test_records_without_truth_are_left_out_and_named(policy):
    records = [record("a"), record("b", asked=("sexual",)), record("c", ("sexual",))]
    cases = pair(records, {}, policy)
    assert [case.record.id for case in cases] == ["a", "c"]
    assert cases.left_out == ("b",)
    known = record("b", asked=("sexual",), true_labels=())
    assert one(known, said("b"), policy).right
    assert one(known, said("b"), policy).knows("abuse")
    with pytest.raises(EvaluationError, match="none of 1 records has a known truth"):
        pair([known], {}, policy, truth="labels")


def test_what_was_not_asked_is_not_known(policy):
    case = one(record("a", ("sexual",), asked=("sexual", "abuse")), None, policy)
    assert [case.knows(name) for name in ("sexual", "abuse", "violence")] == [True, True, False]


@pytest.mark.parametrize("outcome", NON_ANSWERS)
@pytest.mark.parametrize("labels", [(), ("sexual",)])
def test_no_non_answer_is_right_or_flags_or_scores(policy, outcome, labels):
    answer = None
    if outcome != "missing":
        scores = {"safe": 1.0, "sexual": 1.0}
        answer = Answer(id="a", outcome=outcome, error="try again", scores=scores)
    case = one(record("a", labels), answer, policy)
    assert case.outcome == outcome
    assert not case.decided
    assert not case.right
    assert case.flags == ()
    assert case.scores == {}


@pytest.mark.parametrize(
    ("records", "answers", "message"),
    [
        ([record("a"), record("a")], {}, "'a' repeated"),
        ([record("a")], {"a": said("b")}, "filed under 'a' is of 'b'"),
        ([record("a", ("smoking",))], {}, "labels of record 'a': 'smoking' not in the policy"),
        ([record("a")], {"a": said("a", "smoking")}, "flags of the answer on 'a': 'smoking'"),
        ([record("a")], {"a": said("a", scores={"x": 0.5})}, "scores of the answer on 'a': 'x'"),
        ([], {}, "none of 0 records"),
    ],
)
def test_what_does_not_fit_together_is_refused(policy, records, answers, message):
    with pytest.raises(EvaluationError, match=message):
        pair(records, answers, policy)


def test_answers_to_other_records_are_not_looked_at(policy):
    assert len(pair([record("a")], {"z": said("z", "smoking")}, policy)) == 1
