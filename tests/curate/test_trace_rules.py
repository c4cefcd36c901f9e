import asyncio

import pytest

from safelens.curate.trace_check import check_trace
from safelens.curate.trace_generator import Unanswerable
from safelens.curate.trace_rules import RuleGenerator
from safelens.data.records import read_records
from safelens.prompts import parse_response


@pytest.fixture(scope="module")
def records(scored_records):
    return read_records(scored_records)


@pytest.fixture(scope="module")
def write(policy):
    generator = RuleGenerator(policy)

    def written(record, rejected=(), **changes):
        record = record.model_copy(update=changes)
        text = asyncio.run(generator.write(record, rejected, fresh=False))
        _, faults = check_trace(policy, record, text)
        assert faults == [], text
        assert {c for c, flag in parse_response(policy, text).flags.items() if flag} == set(
            record.labels
        )
        return parse_response(policy, text).explanation

    return written


def sure_of(policy, label):
    return dict.fromkeys(policy.labels, 0.01) | {label: 0.94}


@pytest.fixture(scope="module")
def violating(records):
    return next(r for r in records if r.labels and not r.mislabelled and len(r.captions) > 2)


def test_every_trace_of_safeworld_is_good_short_and_begins_with_the_reason(records, write):
    assert len(records) >= 14
    for record in records:
        explanation = write(record)
        words = len(f"{record.description} {explanation}".split())
        assert words <= (50 if record.difficulty != "double" else 75), explanation
        assert explanation.startswith(record.explanation) is not record.mislabelled


def test_a_wrong_label_is_justified_from_itself_alone(records, write, policy):
    wrong = [r for r in records if r.mislabelled]
    assert wrong
    for record in wrong:
        explanation = write(record)
        assert explanation == write(record, explanation="Something else entirely is true.")
        names = [policy.category(label).name for label in record.labels]
        assert all(name in explanation for name in names)
        assert names or "nothing that the policy blocks" in explanation


def test_the_scores_are_compared_with_the_label(violating, write, policy):
    label = violating.labels[0]
    agree = write(violating, scores=sure_of(policy, label))
    assert "agree" in agree or "as the scores say" in agree or "are clear" in agree
    safe = write(violating, scores=sure_of(policy, "safe"))
    assert "lean to safe" in safe
    unsure = write(violating, scores=dict.fromkeys(policy.labels, 1 / 7))
    assert any(word in unsure for word in ("unsure", "open", "vague"))
    assert len({agree, safe, unsure}) == 3


def test_captions_of_something_else_are_not_called_evidence(violating, write):
    other = tuple(c.model_copy(update={"text": "A cat sleeps."}) for c in violating.captions)
    assert "captions are vague" in write(violating, captions=other).lower().replace(
        "captions and scores are", "captions are"
    )


def test_the_frame_is_one_of_the_interval(violating, write):
    last = violating.captions[-1]
    text = write(violating, interval=(last.time_s, last.time_s + 1))
    assert f"Frame-{len(violating.captions) - 1} ({last.time_s:.1f} s)" in text
    between = (violating.captions[0].time_s + 0.01, violating.captions[1].time_s - 0.01)
    text = write(violating, interval=between)
    assert "Frame-0" in text or "Frame-1" in text


def test_wording_varies_but_not_for_the_same_record(violating, write, policy):
    scores = sure_of(policy, violating.labels[0])
    texts = {write(violating, id=f"r{i}", scores=scores) for i in range(12)}
    assert 2 <= len(texts) <= 3
    assert write(violating) == write(violating)


def test_without_truth_in_words_nothing_is_made_up(violating, write):
    for field in ("description", "explanation"):
        with pytest.raises(Unanswerable, match="use another generator"):
            write(violating, **{field: None})
    with pytest.raises(Unanswerable, match="fields of an answer"):
        write(violating, description="A sign: GUARDRAIL: {}")


def test_text_that_the_captions_misread_is_not_taught(violating, write):
    told = "A phone shows the text SO DUMB."
    captions = [c.model_copy(update={"text": told}) for c in violating.captions]
    assert write(violating, description=told, captions=tuple(captions))
    misread = [c.model_copy(update={"text": told.replace("DUMB", "NICE")}) for c in captions]
    with pytest.raises(Unanswerable, match="misread"):
        write(violating, description=told, captions=tuple(misread))
