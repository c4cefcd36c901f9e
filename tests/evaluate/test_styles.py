"""Prompts of other makers, and that what their models write is read rightly or not at all."""

import json

import pytest

from safelens.evaluate.styles import STYLES
from safelens.policy import Policy
from safelens.prompts import ParseError, guardrail_answer


def flagged(policy, style, text):
    return [name for name, flag in STYLES[style].parse(policy, text).flags.items() if flag]


def lines(policy, violated, name=lambda number, category: f"C{number}({category.name})"):
    flags = {name(i, c): c.id in violated for i, c in enumerate(policy.categories, start=1)}
    return f"DESCRIPTION: A room.\nGUARDRAIL: {json.dumps(flags)}\nEXPLANATION: It is seen."


def assessment(**changes):
    usual = {
        "rating": "Unsafe",
        "category": "O2: Harassment & Bullying",
        "rationale": "It is seen.",
    }
    return json.dumps(usual | changes)


def test_every_style_tells_the_whole_policy_and_asks_for_every_category(policy):
    for style in STYLES.values():
        told, asked = style.system(policy), style.question(policy)
        for category in policy.categories:
            assert category.name in told
            assert category.name in asked
            assert all(rule.text in told for rule in category.rules)


def test_safelens_asks_what_an_embedder_learned_to_answer(policy):
    style = STYLES["safelens"]
    assert style.question(policy).endswith("beginning with GUARDRAIL:")
    assert flagged(policy, "safelens", guardrail_answer(policy, ["abuse"])) == ["abuse"]
    assert flagged(policy, "safelens", guardrail_answer(policy, [])) == []


def test_safewatch_answers_count_by_name(policy):
    assert flagged(policy, "safewatch", lines(policy, {"violence", "sexual"})) == [
        "sexual",
        "violence",
    ]
    assert flagged(policy, "safewatch", lines(policy, set())) == []
    # numbers of another prompt, and another of SafeWatch's names for the category
    other = {"abuse": "Bullying and Intimidation"}
    text = lines(policy, {"abuse"}, lambda i, c: f"C{7 - i}({other.get(c.id, c.name)})")
    assert flagged(policy, "safewatch", text) == ["abuse"]
    answer = STYLES["safewatch"].parse(policy, text)
    assert (answer.description, answer.explanation) == ("A room.", "It is seen.")


def test_safewatch_names_meet_a_policy_that_has_its_own():
    rule = [{"blocked": "Fights."}]
    text = "id: own\nname: Own\nversion: '1'\ncategories:\n" + "".join(
        f"  - {json.dumps({'id': i, 'name': n, 'core_value': 'Peace.', 'rules': rule})}\n"
        for i, n in (("violence", "Fights"), ("sexual", "Nudity"))
    )
    own = Policy.from_yaml(text)
    said = 'GUARDRAIL: {"C1(Threats, Violence & Harm)": true, "C2(Sexual Content)": false}'
    assert flagged(own, "safewatch", said) == ["violence"]


def test_llavaguard_answers(policy):
    text = f"```json\n{assessment()}\n```"
    assert flagged(policy, "llavaguard", text) == ["abuse"]
    assert STYLES["llavaguard"].parse(policy, text).explanation == "It is seen."
    assert (
        flagged(policy, "llavaguard", assessment(rating="Safe", category="NA: None applying")) == []
    )
    # what is safe may come near a category
    assert flagged(policy, "llavaguard", assessment(rating="Safe")) == []
    assert flagged(policy, "llavaguard", assessment(category="Sexual Content")) == ["sexual"]
    assert flagged(policy, "llavaguard", assessment()[:-1] + ",\n}") == ["abuse"]


def test_thoughts_are_no_answer(policy):
    wrong, right = guardrail_answer(policy, ["sexual"]), guardrail_answer(policy, ["abuse"])
    assert flagged(policy, "safelens", f"<think>{wrong}</think>\n{right}") == ["abuse"]
    thoughts = f"{assessment(rating='Safe')}</think>{assessment()}"
    assert flagged(policy, "llavaguard", thoughts) == ["abuse"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "text", ["", "Safe", "The video is safe.", "GUARDRAIL: {", "{}", "[]", "null"]
)
def test_what_is_no_answer_is_never_safe(policy, style, text):
    with pytest.raises(ParseError):
        STYLES[style].parse(policy, text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (assessment(category="NA: None applying"), "unsafe, but"),
        (assessment(category="O9: Weather"), "unsafe, but"),
        (assessment(category=None), "unsafe, but"),
        (assessment(rating="safe-ish"), "expected Safe or Unsafe"),
        (assessment(rating=None), "expected Safe or Unsafe"),
        (assessment() + assessment(rating="Safe"), "disagree"),
        (assessment()[:-10], "no whole JSON"),
    ],
)
def test_llavaguard_answers_that_say_nothing(policy, text, why):
    with pytest.raises(ParseError, match=why):
        STYLES["llavaguard"].parse(policy, text)


def test_safewatch_answers_that_say_nothing(policy):
    partly = 'GUARDRAIL: {"C1(Sexual Content)": false}'
    with pytest.raises(ParseError, match="says nothing of"):
        STYLES["safewatch"].parse(policy, partly)
    # the same category under two of its names
    twice = 'GUARDRAIL: {"C1(Sexual Content)": true, "C2(Adult Material)": false}'
    with pytest.raises(ParseError, match="twice"):
        STYLES["safewatch"].parse(policy, twice)
