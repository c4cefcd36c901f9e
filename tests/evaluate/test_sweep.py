"""The sweep is what routing every video at every tau and measuring anew gives."""

import json
import random

import pytest

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import EvaluationError
from safelens.evaluate.cost import costs
from safelens.evaluate.metrics import measure
from safelens.evaluate.routing import route
from safelens.evaluate.sweep import GRID, sweep
from safelens.policy import Category, Policy, Rule
from safelens.thresholds import Thresholds

ABC = Policy(
    "abc",
    "abc",
    "1",
    tuple(Category(name, name.upper(), "x", (Rule("blocked", "x"),)) for name in "abc"),
)


def record(name, *labels, **fields):
    return Record(id=str(name), video="v.mp4", labels=labels, source="test", **fields)


def said(name, label, confidence, *, familiar=True, seconds=1.0, gflops=1.0):
    return Answer(
        id=str(name),
        outcome="decided",
        flags=() if label == "safe" else (label,),
        label=label,
        confidence=confidence,
        familiar=familiar,
        seconds={"screen": seconds},
        gflops=gflops,
    )


def failed(name):
    return Answer(id=str(name), outcome="failed", error="try again", seconds={"decode": 1.0})


def by_id(*answers):
    return {answer.id: answer for answer in answers}


def test_three_videos_by_hand():
    records = [record(0, "a"), record(1), record(2, "a")]
    screen = by_id(said(0, "safe", 0.6), said(1, "safe", 0.9), said(2, "a", 0.8))
    deliberate = by_id(
        *(said(i, x, 0.5, seconds=4, gflops=3) for i, x in enumerate(["a", "b", "a"]))
    )
    found = sweep(records, screen, deliberate, ABC, taus=(0.7,))
    assert [p.tau for p in found.points] == [0.6, 0.7, 0.8, 0.9]
    low, point, high = found.at(0.6), found.at(0.7), found.at(0.9)
    assert (low.escalated, low.accuracy, low.avg_acc, low.seconds) == (
        0,
        pytest.approx(2 / 3),
        0.75,
        1,
    )
    assert (point.accuracy, point.avg_acc, point.f1) == (1, 1, 1)
    assert point.escalated == pytest.approx(1 / 3)
    assert (point.seconds, point.gflops) == (pytest.approx(2), pytest.approx(5 / 3))
    assert point.relative["seconds"] == pytest.approx(0.5)
    assert high.escalated == pytest.approx(2 / 3)  # 0.9 is not below 0.9
    whole = found.everything
    assert (whole.tau, whole.escalated, whole.accuracy, whole.seconds) == (None, 1, 2 / 3, 4)
    assert whole.f1 == pytest.approx(0.8)
    assert set(whole.relative.values()) == {1}
    assert point.relative["avg_acc"] == pytest.approx(2)


@pytest.mark.parametrize("outside", ["escalate", "refuse"])
def test_every_point_is_route_and_measure(outside):
    rng = random.Random(5)
    labels = [*"abc", "safe"]
    records, screen, deliberate = [], [], []
    for i in range(60):
        truth = rng.choice(labels)
        records.append(record(i, *([] if truth == "safe" else [truth])))
        likely = [*labels, truth, truth]
        sure = round(rng.uniform(0.3, 1), 2)
        screen.append(said(i, rng.choice(likely), sure, familiar=rng.random() < 0.8))
        deliberate.append(said(i, rng.choice(likely), sure, seconds=rng.random() + 2, gflops=9))
    screen[3] = deliberate[3] = failed(3)
    deliberate[4] = failed(4)
    records.append(record(60, asked=("a",)))  # of unknown truth
    screen.append(said(60, "a", 0.35))
    deliberate.append(said(60, "a", 0.35, seconds=1000))
    s, d = by_id(*screen), by_id(*deliberate)
    found = sweep(records, s, d, ABC, outside_domain=outside)
    assert {p.tau for p in found.points} == {*GRID, *(a.confidence for a in screen if a.confidence)}
    assert (found.videos, found.timed) == (60, 58)
    for point in found.points:
        routed = {name: route(s[name], d[name], Thresholds(point.tau), outside) for name in s}
        figures = measure(records, routed, ABC)
        assert point.avg_acc == pytest.approx(figures.single_label.avg_acc)
        assert point.accuracy == pytest.approx(figures.single_label.accuracy)
        assert point.f1 == pytest.approx(figures.any_violation.f1)
        assert point.undecided == pytest.approx(1 - figures.counts.decided / 60)
        known = [a for name, a in routed.items() if name not in ("3", "4", "60")]
        assert point.seconds == pytest.approx(costs(known).seconds.mean)
        assert point.gflops == pytest.approx(costs(known).gflops)
        assert point.escalated == pytest.approx(
            sum(a is d[name] for name, a in routed.items() if name != "60") / 60
        )
    json.dumps(found.to_dict(), allow_nan=False)


def test_unknown_costs_and_no_violation_are_none():
    records = [record(0), record(1)]
    screen = by_id(said(0, "safe", 0.6, gflops=None), said(1, "safe", 0.7))
    found = sweep(records, screen, by_id(said(0, "safe", 0.5), said(1, "a", 0.5)), ABC)
    point = found.at(0.55)
    assert (point.gflops, point.f1, point.relative["gflops"]) == (None, None, None)
    assert point.seconds == 1


def test_wrong_use_is_named():
    records = [record(0), record(1)]
    both = by_id(said(0, "safe", 0.6), said(1, "safe", 0.6))
    with pytest.raises(EvaluationError, match="one stage alone has answers on '1'"):
        sweep(records, both, by_id(said(0, "safe", 0.6)), ABC)
    with pytest.raises(ValueError, match="0 or more"):
        sweep(records, both, both, ABC, taus=(-0.1,))
