import json

import numpy as np
import pytest

from benchmarks.paper.measured import MOST_COST, accuracy, figures
from benchmarks.paper.pages import written
from benchmarks.paper.pictures import tau_picture
from benchmarks.paper.stages import CHOICE, TEST, ZERO_SHOT, records_of, seed_of
from recipes.tiny.__main__ import FILTER, LABELS
from safelens.data.records import Record, write_records
from safelens.evaluate.answer_log import write_answers
from safelens.evaluate.answers import Answer
from safelens.policy import Policy

CLASSES = Policy.load("default").labels
S1_RIGHT, S2_RIGHT = 0.8, 0.9


def records(count, prefix):
    labels = [CLASSES[i % len(CLASSES)] for i in range(count)]
    return [
        Record(
            id=f"{prefix}{i}",
            video=f"{prefix}{i}.mp4",
            labels=() if label == "safe" else (label,),
            source="made",
        )
        for i, label in enumerate(labels)
    ]


def answers(records, right, *, gflops, rng, sure=0.55):
    """Right with the given probability; a confidence that is that of being right, where `sure` is None."""
    found = []
    for record in records:
        truth = CLASSES.index(record.labels[0] if record.labels else "safe")
        confidence = float(rng.uniform(0.3, 1)) if sure is None else sure
        hit = rng.random() < (confidence if sure is None else right)
        answer = truth if hit else (truth + 1 + int(rng.integers(5))) % len(CLASSES)
        p = np.full(len(CLASSES), (1 - confidence) / (len(CLASSES) - 1))
        p[answer] = confidence
        label = CLASSES[answer]
        found.append(
            Answer(
                id=record.id,
                outcome="decided",
                flags=() if label == "safe" else (label,),
                label=label,
                scores=dict(zip(CLASSES, p.tolist(), strict=True)),
                confidence=confidence,
                familiar=True,
                seconds={"screen": gflops},
                gflops=gflops,
            )
        )
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    test, choice = records(210, "t"), records(1400, "c")
    for stage, some in ((TEST, test), (CHOICE, choice)):
        folder = stage.folder(root) / "data"
        folder.mkdir(parents=True)
        write_records(folder / "records.jsonl", some)

    for stage, some in ((LABELS, choice), (FILTER, choice[:800])):
        stage.folder(root).mkdir(parents=True)
        write_records(stage.folder(root) / "records.jsonl", some)

    def put(stage, **stages):
        for name, some in stages.items():
            write_answers(stage.folder(root) / "answers" / "system" / f"{name}.jsonl", some)

    put(ZERO_SHOT, generate=answers(test, 0.2, gflops=0.5, rng=rng))
    for number in range(2):
        seed = seed_of(number)
        for stage, some in ((seed.test, test), (seed.choice, choice)):
            put(
                stage,
                screen=answers(some, S1_RIGHT, gflops=1.0, rng=rng, sure=None),
                deliberate=answers(some, S2_RIGHT, gflops=5.0, rng=rng),
            )
        put(seed.screened, screen=answers(choice, S1_RIGHT, gflops=1.0, rng=rng, sure=None))
        put(seed.tuned, generate=answers(test, 0.6, gflops=2.0, rng=rng))
        for stage, right in ((seed.filtered, 0.7), (seed.unfiltered, 0.5)):
            stage.folder(root).mkdir(parents=True)
            classes = dict.fromkeys(CLASSES, right) | {"average": right}
            (stage.folder(root) / "accuracy.json").write_text(json.dumps(classes))
    return root


def test_figures_are_those_of_the_answers(work):
    found = figures(2, work)
    assert found["videos"] == {"test": 210, "choice": 1400}
    assert found["classes"]["labelled"] == dict.fromkeys(CLASSES, 200) | {"total": 1400}
    mean = {name: np.mean(values) for name, values in found["avg_acc"].items()}
    assert mean["zero_shot"] == pytest.approx(0.2, abs=0.08)
    assert mean["s2"] == pytest.approx(S2_RIGHT, abs=0.05)
    assert mean["filtered"] > mean["vlm_finetuned"] > mean["unfiltered"]
    assert mean["s1"] == pytest.approx(0.65, abs=0.06)  # mean of the confidences
    assert mean["s1_equal"] == pytest.approx(mean["s1"], abs=0.02)  # classes are equally common
    # What S1 is sure of it keeps, so the mix is better than S1 and bounded in cost.
    assert mean["cascade"] > mean["s1"] + 0.03
    cost = found["cascade_cost_over_s2"]["gflops"]
    assert cost["mean"] == pytest.approx(MOST_COST, abs=0.08)
    # One second a GFLOP: both ratios are the same, and follow from the share that is escalated.
    assert found["cascade_cost_over_s2"]["seconds"]["values"] == pytest.approx(cost["values"])
    for share, ratio in zip(found["escalated"]["values"], cost["values"], strict=True):
        assert ratio == pytest.approx((1.0 * (1 - share) + 5.0 * share) / 5.0)
    assert found["costs"]["s2"]["gflops"]["mean"] == pytest.approx(5.0)


def test_calibration_of_calibrated_confidences(work):
    for one in figures(2, work)["calibration"]:
        assert one["temperature"] == pytest.approx([1.0, 1.0], abs=0.25)
        assert one["ece"] == pytest.approx(one["ece_faultless"], abs=0.03)
        assert one["risk_holds"] >= 0.9


def test_accuracy_by_hand():
    some = records(7, "x")
    rng = np.random.default_rng(0)
    right = answers(some, 1.0, gflops=1.0, rng=rng)
    found = accuracy(some, {a.id: a for a in right})
    assert found["avg_acc"] == found["macro_f1"] == 1
    # One of seven classes is missed: an answer that is none is never right.
    right[2] = Answer(id="x2", outcome="unparsed", text="?", error="no answer")
    found = accuracy(some, {a.id: a for a in right})
    assert found["avg_acc"] == pytest.approx(6 / 7)
    assert found[CLASSES[2]] == 0


def test_the_page_names_what_is_the_papers(work):
    report = figures(2, work) | {
        "command": "python -m benchmarks.paper",
        "about": "About.",
        "chosen_on": 400,
        "machine": {
            "cpu": "x",
            "cores": 2,
            "memory_gib": 1,
            "threads": 1,
            "load_before": 0.0,
            "python": "3",
            "torch": "2",
            "transformers": "5",
        },
    }
    page = written(report)
    rows = [line for line in page.splitlines() if "SafeWatch-" in line]
    assert len(rows) == 14
    assert all("| paper |" in row for row in rows)
    own = next(line for line in page.splitlines() if line.startswith("| S2 | ours"))
    values = report["avg_acc"]["s2"]
    assert f"{100 * np.mean(values):.1f}±{100 * np.std(values, ddof=1):.1f}" in own
    assert tau_picture(report["sweep"]).count("<svg") == 1


def test_seeds_share_data_and_differ_in_training():
    one, other = seed_of(0), seed_of(1)
    assert one.test.digest != other.test.digest
    assert one.test.needs[0] is other.test.needs[0] is TEST
    assert not {one.filtered.digest, one.tuned.digest} & {other.filtered.digest, other.tuned.digest}


def test_videos_are_found_from_anywhere(tmp_path):
    (tmp_path / "data").mkdir()
    write_records(tmp_path / "data" / "records.jsonl", records(1, "v"))
    assert records_of(tmp_path)[0].video == str((tmp_path / "data" / "v0.mp4").resolve())
