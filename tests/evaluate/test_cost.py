"""Costs by hand; a figure that one answer does not tell is not told."""

import pytest

from safelens.evaluate.answers import Answer
from safelens.evaluate.cost import Times, costs, total_seconds


def answer(outcome="decided", seconds=None, gflops=1.0, prompt=10, generated=2):
    told = {"flags": (), "label": "safe"} if outcome == "decided" else {"error": "why"}
    return Answer(
        id="a",
        outcome=outcome,
        seconds={"decode": 0.5, "screen": 1.0} if seconds is None else seconds,
        gflops=gflops,
        prompt_tokens=prompt,
        generated_tokens=generated,
        **told,
    )


def test_times_by_stage_are_of_the_videos_that_entered_it():
    s2 = [{"decode": 0.5, "screen": 1.0, "deliberate": float(k)} for k in (2, 4)]
    found = costs([answer(), answer(seconds=s2[0], gflops=5.0), answer(seconds=s2[1], generated=8)])
    assert found.stages["screen"] == Times(3, 1.0, 1.0, 1.0)
    assert found.stages["deliberate"] == Times(2, 3.0, 3.0, pytest.approx(3.9))
    assert (found.seconds.videos, found.seconds.mean, found.seconds.median) == (3, 3.5, 3.5)
    assert found.gflops == pytest.approx(7 / 3)
    assert (found.prompt_tokens, found.generated_tokens) == (10, 4)


def test_failed_answers_are_counted_and_cost_nothing():
    broken = answer("failed", seconds={"decode": 99.0}, gflops=None, prompt=0)
    found = costs([answer(), answer("undecided"), answer("unparsed"), broken])
    assert (found.videos, found.failed, found.seconds.mean) == (3, 1, 1.5)
    assert (found.gflops, found.prompt_tokens) == (1, 10)
    assert total_seconds(broken) is None


def test_what_is_unknown_is_none():
    found = costs([answer(), answer(gflops=None, prompt=0, seconds={})])
    assert (found.seconds, found.gflops) == (None, None)
    assert (found.prompt_tokens, found.generated_tokens) == (None, None)
    nothing = costs([])
    assert (nothing.videos, nothing.seconds, nothing.stages, nothing.gflops) == (0, None, {}, None)
