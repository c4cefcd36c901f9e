"""What explanations name, on scenes of SafeWorld, with figures by hand."""

import json

import pytest

from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.explanations import moments
from safelens.evaluate.metrics import measure
from safelens.evaluate.report import markdown, page
from safelens.evaluate.results import judge
from safelens.evaluate.run import Run
from safelens.evaluate.spread import combine
from safelens.safeworld import sample_scene
from safelens.safeworld.writer import clip_id
from safelens.verdict import Caption


def captions(*times):
    return tuple(Caption(time_s=t, text="A street.") for t in times)


@pytest.fixture(scope="module")
def scenes():
    """Ten violating scenes with one violation, and one with two."""
    drawn = [sample_scene(6, i) for i in range(400)]
    single = [s for s in drawn if len(s.truth.labels) == 1][:10]
    return single, next(s for s in drawn if len(s.truth.labels) == 2)


def record_of(scene, **changes):
    t = scene.truth
    record = Record(id=clip_id(scene.seed, scene.index), video="gone.mp4", source="safeworld",
                    labels=t.labels, true_labels=t.labels, description=t.description,
                    explanation=t.explanation, interval=(2.0, 3.0), scenario=t.scenario,
                    captions=captions(0.0, 1.0, 2.0, 3.0, 4.0))  # fmt: skip
    return record.model_copy(update=changes)


def said(record, *flags, **fields):
    return Answer(id=record.id, outcome="decided", flags=flags,
                  label=flags[0] if flags else "safe", **fields)  # fmt: skip


def measured(records, answers, policy):
    return measure(records, {a.id: a for a in answers}, policy).explanations


def one(scene, policy, text, **fields):
    record = record_of(scene)
    return measured([record], [said(record, *record.labels, explanation=text, **fields)], policy)


def test_figures_by_hand(scenes, policy):
    records = [record_of(s) for s in scenes[0]]
    a, b, c, d, e, f, g, h, i, j = records
    wrong = "violence" if e.labels[0] != "violence" else "abuse"
    answers = [
        said(a, *a.labels, explanation=f"{a.explanation} See 2.0 s."),
        said(b, *b.labels, explanation=f"{b.explanation} It happens at 0.4 s."),
        said(c, *c.labels, explanation="It is bad, at 3.4 seconds."),
        said(d, *d.labels, description=d.explanation),  # told, but not as a reason
        said(e, wrong, explanation=f"{e.explanation} See 2.0 s."),
        said(f, explanation=f"{f.explanation} See 2.0 s."),
        Answer(id=g.id, outcome="unparsed", text=g.explanation, error="no answer"),
        Answer(id=h.id, outcome="failed", error="no answer"),
        Answer(id=i.id, outcome="undecided", error="cannot tell"),
    ]
    found = measured(records, answers, policy)
    assert (found.videos, found.right, found.wrong) == (10, 4, 2)
    assert (found.undecided, found.unparsed, found.failed, found.missing) == (1, 1, 1, 1)
    assert found.explained == 3
    assert (found.named, found.named_of_all) == (2 / 4, 2 / 10)
    assert (found.moment, found.wrong_moment, found.no_moment) == (2 / 4, 1 / 4, 1 / 4)
    assert (found.moment_of_all, found.moment_of_named) == (2 / 10, 2 / 3)
    assert found.by_chance == pytest.approx(2 / 5)  # 2.0 and 3.0 s of five frames
    assert measured([*records[:9]], answers, policy).missing == 0
    assert j.id not in {answer.id for answer in answers}


def test_a_moment_may_be_off_by_half_a_frame_and_no_more(scenes, policy):
    scene = scenes[0][0]
    for time, right in ((1.4, 0), (1.5, 1), (1.6, 1), (3.5, 1), (3.6, 0)):
        assert one(scene, policy, f"At {time} s.").moment == right, time
    told = {"captions": captions(0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)}  # its own frames are denser
    assert one(scene, policy, "At 1.6 s.", **told).moment == 0
    assert one(scene, policy, "At 1.8 s.", **told).moment == 1
    assert one(scene, policy, "At 1.8 s.", **told).by_chance == pytest.approx(3 / 7)


def test_every_moment_that_is_named_must_be_right(scenes, policy):
    scene, told = scenes[0][0], {"captions": captions(0.0, 1.0, 2.0, 3.0)}
    assert one(scene, policy, "Frame-2 (2.0 s) and Frame-3.", **told).moment == 1
    assert one(scene, policy, "From 0.0 s to 3.0 s.", **told).wrong_moment == 1
    assert one(scene, policy, "Frame-2 (0.0 s).", **told).wrong_moment == 1
    assert one(scene, policy, "Frame-9 shows it.", **told).wrong_moment == 1
    assert one(scene, policy, "Frame-2 shows it.").no_moment == 1  # who numbered the frames?
    assert one(scene, policy, "It is seen twice in 5 frames.", **told).no_moment == 1


def test_moments_are_read_as_they_are_written(scenes):
    answer = said(record_of(scenes[0][0]), captions=captions(0.0, 1.25))
    for text, times in (
        ("Frame-1 (1.3 s) shows it.", [1.3, 1.25]),
        ("frame 0, Frame #1", [0.0, 1.25]),
        ("at 2.1 seconds, 3 sec or 4s", [2.1, 3.0, 4.0]),
        ("version 2.1, 0.93 of 100 %, 3 people, 5 stones", []),
    ):
        assert moments(text, answer) == times, text
    assert moments("Frame-1", None) == []


def test_of_two_violations_the_one_that_is_flagged_must_be_named(scenes, policy):
    scene = scenes[1]
    record = record_of(scene)
    first, second = scene.truth.explanation.split(". ")
    a, b = scene.truth.labels
    for flags, text, named in (((a,), first, 1), ((b,), second, 1), ((a, b), second, 1)):
        assert measured([record], [said(record, *flags, explanation=text)], policy).named == named
    assert measured([record], [said(record, b, explanation=first)], policy).named == 0


def test_only_violating_videos_with_a_known_truth_count(scenes, policy):
    scene = scenes[0][0]
    others = [
        record_of(scene, id="other"),
        record_of(scene, source="other"),
        record_of(scene, interval=None),
        record_of(scene, labels=(), true_labels=()),
    ]
    for record in others:
        found = measured([record], [said(record, explanation="At 2.0 s.")], policy)
        assert (found.videos, found.right, found.named, found.by_chance) == (0, 0, None, None)


def test_runs_have_a_spread_and_reports_the_table(scenes, policy):
    records = [record_of(s) for s in scenes[0][:2]]
    good = [said(r, *r.labels, explanation=f"{r.explanation} At 2.0 s.") for r in records]
    half = [good[0], said(records[1], *records[1].labels)]
    runs = [
        measure(records, {a.id: a for a in answers}, policy).to_dict() for answers in (good, half)
    ]
    assert combine(runs)["explanations"]["named"] == pytest.approx(
        {"mean": 0.75, "sd": 0.125**0.5, "n": 2}
    )
    results = judge("world", records, {"plain": Run({"generate": half}, {}, 0)}, policy)
    told = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert told["systems"]["plain"]["metrics"]["explanations"]["named"] == 0.5
    cells = "| plain | 2 | 2 | 0 | 0 / 0 / 0 / 0 | 1 | 50.0 | 50.0 | 50.0 | 0.0 | 50.0 | 50.0 |"
    assert cells in markdown(results)
    assert "Do explanations name what violates, and when?" in page(results)
    unknown = judge("x", [record_of(scenes[0][0], source="x")],
                    {"plain": Run({"generate": half[:1]}, {}, 0)}, policy)  # fmt: skip
    assert "Do explanations name" not in markdown(unknown)


def test_s1_gives_no_reasons_and_has_no_row(scenes, policy):
    record = record_of(scenes[0][0])
    s1 = said(record, *record.labels)
    s2 = said(record, *record.labels, explanation=record.explanation)
    run = Run({"screen": [s1], "deliberate": [s2], "cascade": [s1]}, {}, 0)
    text = markdown(judge("world", [record], {"b": run}, policy))
    table = text.partition("Do explanations name")[2].partition("## ")[0]
    assert "| b/deliberate | 1 | 1 |" in table
    assert "| b/cascade | 1 | 1 | 0 | 0 / 0 / 0 / 0 | 0 | 0.0 |" in table
    assert "b/screen" not in table
