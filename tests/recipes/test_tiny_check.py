import pytest

from recipes.tiny.check import figures, films, real
from safelens.data.records import Record
from safelens.evaluate.answers import Answer
from safelens.evaluate.run import Run
from safelens.policy import Policy
from safelens.safeworld.writer import scene_of
from safelens.verdict import Caption, Evidence

POLICY = Policy.load("default")


def record(number, **fields):
    fields = {"labels": ()} | fields
    return Record(id=f"sw5-{number:06d}", video=f"{number}.mp4", source="safeworld", **fields)


def answer(of, label, **fields):
    flags = () if label == "safe" else (label,)
    return Answer(id=of.id, outcome="decided", flags=flags, label=label, **fields)


def test_figures_by_hand():
    records = [
        record(0, labels=("violence",), interval=(1.0, 2.0), difficulty="order"),
        record(1, labels=("violence",), interval=(1.0, 2.0), difficulty="plain"),
        record(2, labels=("abuse", "violence"), difficulty="double"),
        record(3, difficulty="plain"),
    ]
    seen = [Evidence(start_s=1.5, end_s=3.0, category="violence", score=0.9)]
    late = [Evidence(start_s=2.5, end_s=3.0, category="violence", score=0.9)]
    s1 = [
        answer(records[0], "violence", evidence=seen, familiar=True),
        answer(records[1], "violence", evidence=late, familiar=True),
        answer(records[2], "violence", familiar=True),
        answer(records[3], "abuse", familiar=False),
    ]
    told = scene_of(records[3].id)
    whole = Caption(time_s=0.5, text=" ".join(told.objects(0.5)))
    words = {"description": "d", "explanation": "e"}
    s2 = [
        answer(records[0], "safe", **words),
        answer(records[1], "violence", description="d"),
        answer(records[2], "sexual", **words),
        answer(records[3], "safe", captions=(whole, Caption(time_s=0.5, text="nothing")), **words),
    ]
    cascade = [s1[0], s1[1], s2[2], s2[3]]
    found = figures(records, {"screen": s1, "deliberate": s2, "cascade": cascade}, POLICY)
    assert found["S1"]["violence"] == 1
    assert found["S1"]["average"] == pytest.approx((1 + 1 + 0) / 3)  # abuse is violence too
    assert found["S2"]["average"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["cascade"]["average"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["escalated"] == 0.5
    assert found["right among escalated"] == {"s1": 0.5, "s2": 0.5}
    assert found["S1, S2, cascade by difficulty"]["plain"] == [0.5, 1.0, 1.0, 2]
    assert found["evidence meets the true interval"] == 0.5
    assert found["fresh clips out of domain"] == 0.25
    assert found["S2 with description and explanation"] == 0.75
    assert bool(told.objects(0.5))
    assert found["frames whose caption names all objects"] == 0.5


def test_real_videos_are_counted_by_what_the_guard_says(tmp_path):
    for name in ("b.mp4", "a.webm", "labels.csv"):
        (tmp_path / name).touch()
    assert [f.id for f in films(tmp_path)] == ["a.webm", "b.mp4"]
    answers = [
        Answer(id="a", outcome="decided", flags=(), label="safe", familiar=False),
        Answer(id="b", outcome="decided", flags=(), label="safe", familiar=True),
        Answer(id="c", outcome="failed", error="c: no video"),
    ]
    found = real(Run({"screen": answers}, {}, 0))
    assert found == {"out of domain": 1, "in domain": 1, "unreadable": 1}
