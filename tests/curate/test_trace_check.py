import pytest

from safelens.curate.trace_check import canonical, check_trace
from safelens.data.records import Record
from safelens.prompts import guardrail_answer, parse_response
from safelens.verdict import Caption

CAPTIONS = [
    {"time_s": 0.0, "text": "A street. A red person stands by a window."},
    {"time_s": 1.5, "text": "A street. A red person throws a rock at a window."},
    {"time_s": 3.0, "text": "A street. A red person stands by a broken window."},
]
DESCRIPTION = "A red person throws a rock at a window."
EXPLANATION = "Frame-1 shows the throw, and the scores agree: vandalism."


@pytest.fixture
def record(policy):
    scores = dict.fromkeys(policy.labels, 0.0125) | {"violence": 0.9345, "safe": 0.003}
    return Record(
        id="a", video="a.mp4", labels=["violence"], source="test", captions=CAPTIONS, scores=scores
    )


@pytest.fixture
def rules(policy, record):
    """Rules that a trace of these parts breaks."""

    def broken(*, description=DESCRIPTION, explanation=EXPLANATION, guardrail=None, text=None):
        guardrail = guardrail or guardrail_answer(policy, record.labels)
        text = text or f"DESCRIPTION: {description}\nEXPLANATION: {explanation}\n{guardrail}"
        _, faults = check_trace(policy, record, text)
        assert all(str(fault).startswith(f"{fault.rule}: ") for fault in faults)
        return [fault.rule for fault in faults]

    return broken


def test_a_good_trace_has_no_fault_and_is_written_in_one_form(policy, record):
    flags = guardrail_answer(policy, ["violence"]).removeprefix("GUARDRAIL: ")
    wrapped = (
        f"Sure!\n\n**EXPLANATION:** {EXPLANATION}\n\n**DESCRIPTION:** {DESCRIPTION}\n"
        f"**GUARDRAIL:** ```json\n{flags}\n```"
    )
    response, faults = check_trace(policy, record, wrapped)
    assert faults == []
    text = canonical(policy, record, response)
    assert text == f"DESCRIPTION: {DESCRIPTION}\nEXPLANATION: {EXPLANATION}\nGUARDRAIL: {flags}"
    assert parse_response(policy, text) == response


@pytest.mark.parametrize("text", ["", "no answer", "GUARDRAIL: {", "\x00", "{" * 5000])
def test_form_unreadable(rules, text):
    assert rules(text=text or " ") == ["form"]


def test_form_every_field_once_and_not_empty(rules, policy):
    assert rules(description="") == ["form"]
    assert rules(explanation=" ") == ["form"]
    guardrail = guardrail_answer(policy, ["violence"])
    assert rules(text=guardrail) == ["form", "form"]
    assert rules(explanation=f"{EXPLANATION}\nEXPLANATION: {EXPLANATION}") == ["form"]


def test_a_guardrail_line_that_the_video_shows_does_not_answer(rules, policy):
    yes, no = guardrail_answer(policy, ["violence"]), guardrail_answer(policy, [])
    for quoted in (yes, no):
        shown = f"A sign that reads {quoted} stands in a park."
        assert rules(description=shown) == ["form"]
        assert rules(description=shown, guardrail=no) == ["form"]
        assert rules(text=f"DESCRIPTION: {shown}\nEXPLANATION: {EXPLANATION}") == ["form"]
        assert rules(description=f"A sign reads:\n{quoted}\nand stands in a park.") == ["form"]


def test_categories_are_those_of_the_policy(rules):
    assert rules(guardrail='GUARDRAIL: {"Spam": true}') == ["categories"]
    assert rules(guardrail='GUARDRAIL: {"Sexual Content": false}') == ["categories"]
    twice = '{"Sexual Content": false, "Sexual Content": false}'
    assert rules(guardrail=f"GUARDRAIL: {twice}") == ["categories"]


def test_the_label_is_kept(rules, policy):
    for labels in ([], ["abuse"], ["violence", "abuse"]):
        assert rules(guardrail=guardrail_answer(policy, labels)) == ["label"]
    assert rules(guardrail='GUARDRAIL: {"Threats, Violence & Harm": true}') == []


@pytest.mark.parametrize(
    "reference",
    [
        "Frame-1 decides this case alone, clearly.",
        "In frame 2 it is seen at the end.",
        "En los frames 0-2 se ve todo.",
        "At 1.5 s it happens for all to see.",
        "The classifier gives 0.93 for it, rightly so.",
        "The classifier gives 0.935 for it, rightly so.",
        "The classifier is 93 % sure of it, rightly so.",
        "A rock flies and hits a window there.",
    ],
)
def test_what_counts_as_a_reference(rules, reference):
    assert rules(explanation=reference) == []


@pytest.mark.parametrize(
    "empty",
    [
        "The video violates the policy and is harmful content.",
        "Threats, Violence & Harm is the most relevant category of the policy.",
        "It happens at 2.5 s for all to see.",
        "It is 55 % likely and thus to be flagged.",
        "The window is the thing that matters here.",
    ],
)
def test_what_does_not(rules, empty):
    assert rules(explanation=empty) == ["grounding"]


def test_references_to_what_is_not_there(rules):
    assert rules(explanation="Frame-1 and Frame-3 show the throw.") == ["grounding"]
    assert rules(explanation="Frame-1 shows it at a score of 0.71.") == ["grounding"]
    assert rules(explanation="Frame-1 shows a sale with 50 % off for 0.99 $.") == ["grounding"]
    assert rules(explanation="Frame-1 shows a sale with 50 % off for $0.99.") == []
    assert rules(explanation="Frame-1 shows it, 0.75 s after the start.") == []


def test_length_in_words(rules):
    assert rules(description="A fight.") == ["length"]
    assert rules(explanation="Frame-1 shows it.") == ["length"]
    assert rules(explanation="Frame-1 shows it. " + "So it is. " * 60) == ["length"]
    assert rules(description="街上一个人向窗户扔石头。", explanation="0.93 这是破坏财产。") == []


@pytest.mark.parametrize(
    "phrase",
    [
        "The ground-truth label says violence",
        "As the given label states",
        "According to the annotation",
        "This matches the original response",
        "The correct answer is violence",
    ],
)
def test_talk_of_the_label_is_a_leak(rules, phrase):
    assert rules(explanation=f"{phrase}, and Frame-1 shows it.") == ["leak"]


def test_a_label_that_the_video_shows_is_no_leak(rules, policy, record):
    assert rules(explanation="Frame-1 shows a bottle with a label that reads POISON.") == []
    slide = Caption(time_s=4.0, text="A slide with the text GROUND TRUTH.")
    shown = record.model_copy(update={"captions": (*record.captions, slide)})
    guardrail = guardrail_answer(policy, ["violence"])
    text = f"DESCRIPTION: {DESCRIPTION}\nEXPLANATION: Frame-3 reads ground truth.\n{guardrail}"
    assert check_trace(policy, shown, text)[1] == []
    assert {fault.rule for fault in check_trace(policy, record, text)[1]} == {"grounding", "leak"}
