import math

import pytest

from safelens.answer_tokens import boolean_scores
from safelens.policy import Category, Policy, Rule
from safelens.prompts import ParseError


@pytest.fixture(scope="module")
def two():
    rules = (Rule("blocked", "Flag what is shown."),)
    names = {"a": "Äpfel", "b": "Two"}
    many = tuple(Category(key, name, "Safety.", rules) for key, name in names.items())
    return Policy(id="two", name="Two", version="1", categories=many)


def token(text, p=0.9, **others):
    """A token as an endpoint gives it; others are likely in its place, blanks written as underscores."""
    top = {text: p} | {other.replace("_", " "): q for other, q in others.items()}
    listed = [{"token": t, "logprob": math.log(q)} for t, q in top.items()]
    return listed[0] | {"top_logprobs": listed}


def answer(first, second, before=()):
    """Tokens of an answer whose booleans are these; a letter is cut in two, as tokenizers do."""
    cut = [{"token": "\ufffd", "bytes": [byte], "logprob": 0.0} for byte in "Ä".encode()]
    end = {"token": "<|im_end|>", "bytes": [], "logprob": 0.0}
    return [
        *before, token('GUARDRAIL: {"'), *cut, token('pfel":'), first, end, token(', "'), token("Two"),
        token('":'), second, token("}"), end,
    ]  # fmt: skip


def test_true_against_false_at_each_boolean(two):
    first = token(" true", 0.6, _false=0.2, _maybe=0.1, true=0.1)
    second = token(" false", 0.75, _true=0.25)
    scores = boolean_scores(two, {"a": True, "b": False}, answer(first, second))
    assert scores == pytest.approx({"a": 0.7 / 0.9, "b": 0.25})


def test_words_in_several_tokens_and_in_pythons_letters(two):
    halves = [token(" t", 0.6, _f=0.2), token("rue", 1.0)]
    found = answer(halves[0], token(" False", 0.8, _True=0.2))
    found.insert(found.index(halves[0]) + 1, halves[1])
    scores = boolean_scores(two, {"a": True, "b": False}, found)
    assert scores == pytest.approx({"a": 0.75, "b": 0.2})


def test_what_is_not_listed_counts_as_the_least_that_is(two):
    sure, alone = token(" true", 0.9, _yes=0.05, _no=0.01), token(" false", 0.9)
    scores = boolean_scores(two, {"a": True, "b": False}, answer(sure, alone))
    assert scores == pytest.approx({"a": 0.9 / 0.91, "b": 0.5})
    forced = token(" true", 1e-9, _no=0.9)  # by a grammar, against the model's will
    impossible = token(" false") | {"logprob": -9999.0, "top_logprobs": []}
    scores = boolean_scores(two, {"a": True, "b": False}, answer(forced, impossible))
    assert scores == pytest.approx({"a": 0.5, "b": 0.5})


def test_the_boolean_that_stands_and_not_an_earlier_thought(two):
    thought = [token('"Two":'), token(" false", 0.99, _true=0.01), token("</think>")]
    found = answer(token(" false", 0.9, _true=0.1), token(" false", 0.6, _true=0.4), thought)
    assert boolean_scores(two, {"a": False, "b": False}, found)["b"] == pytest.approx(0.4)


def test_left_out_is_0_and_flagged_without_a_token_is_an_error(two):
    nothing = [token("GUARDRAIL: {}")]
    assert boolean_scores(two, {"a": False, "b": False}, nothing) == {"a": 0, "b": 0}
    with pytest.raises(ParseError, match="no token is the boolean of 'Two'"):
        boolean_scores(two, {"a": False, "b": True}, nothing)


@pytest.mark.parametrize(
    "bad",
    [
        {"token": " true"},
        {"token": " true", "logprob": "high"},
        {"token": " true", "logprob": math.nan},
        {"token": " true", "logprob": 3.0},
        {"token": " true", "logprob": 1e9},
        {"token": " true", "bytes": [999], "logprob": -1.0},
        {"token": " true", "logprob": -1.0, "top_logprobs": [1]},
    ],
)
def test_another_form_is_an_error(two, bad):
    with pytest.raises(ParseError, match="unknown form"):
        boolean_scores(two, {"a": True, "b": False}, answer(bad, token(" false")))
    with pytest.raises(ParseError, match="unknown form"):
        boolean_scores(two, {"a": True, "b": False}, ["true"])
