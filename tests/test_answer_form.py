import json
import re

import pytest

from safelens import prompts
from safelens.answer_form import answer_regex, answer_schema, form_fields
from safelens.policy import Category, Policy, Rule


@pytest.fixture
def odd_policy():
    """Names that a regular expression or a JSON text could take for something else."""
    rules = (Rule("blocked", "Flag what is shown."),)
    names = ('Kind "A" (1)', "B|C.*", "D\\E & [F]", "Gewalt für {alle}?")
    many = tuple(Category(f"c{i}", name, "Safety.", rules) for i, name in enumerate(names))
    return Policy(id="odd", name="Odd", version="1", categories=many)


@pytest.mark.parametrize("which", ["policy", "odd_policy"])
def test_the_regex_is_the_answer_that_is_trained_and_nothing_else(which, request):
    policy = request.getfixturevalue(which)
    pattern = answer_regex(policy)
    first, second = (c.id for c in policy.categories[:2])
    for labels in ([], [second], [first, second]):
        text = prompts.deliberation_answer(policy, 'A "park" {x}.', "It is shown.", labels)
        assert re.fullmatch(pattern, text)
        assert [
            n for n, flag in prompts.parse_response(policy, text).flags.items() if flag
        ] == labels
    cut = re.sub(r'".*?":', "", text, count=1)
    for wrong in (
        text[:-1],
        text.replace(" true", " 1"),
        f" {text}",
        cut,
        f"{text}\n",
        "GUARDRAIL: {}",
    ):
        assert not re.fullmatch(pattern, wrong)


def test_the_regex_escapes_only_what_every_engine_knows(odd_policy):
    escaped = set(re.findall(r"\\(.)", answer_regex(odd_policy)))
    assert escaped <= set(r"n\.^$*+?{}[]()|")


@pytest.mark.parametrize("which", ["policy", "odd_policy"])
def test_what_fits_the_schema_is_read(which, request):
    policy = request.getfixturevalue(which)
    schema = answer_schema(policy)
    assert schema["required"] == ["DESCRIPTION", "EXPLANATION", "GUARDRAIL"]
    flags = schema["properties"]["GUARDRAIL"]
    assert flags["required"] == list(flags["properties"]) == [c.name for c in policy.categories]
    assert {json.dumps(kind) for kind in flags["properties"].values()} == {'{"type": "boolean"}'}
    assert schema["additionalProperties"] is flags["additionalProperties"] is False
    answer = {"DESCRIPTION": 'A "sign":\nü', "EXPLANATION": "none"}
    answer["GUARDRAIL"] = {name: i == 1 for i, name in enumerate(flags["required"])}
    for ascii_only in (True, False):
        found = prompts.parse_response(policy, json.dumps(answer, ensure_ascii=ascii_only))
        assert (found.description, found.explanation) == (answer["DESCRIPTION"], "none")
        assert list(found.flags.values()) == [i == 1 for i in range(len(policy.categories))]


def test_the_fields_of_each_form(policy):
    assert form_fields(policy, "none") == {}
    regex = form_fields(policy, "regex")
    assert regex == {"structured_outputs": {"regex": answer_regex(policy)}}
    form = form_fields(policy, "json_schema")["response_format"]
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", True)
    assert form["json_schema"]["schema"] == answer_schema(policy)
