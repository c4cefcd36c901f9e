"""The grid of backbones: its figures and page from made-up answers, and its stages in miniature."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.paper.backbones import CLIPS, FAMILIES, INTERNVL, PAIRS, QWEN, backbone, pair
from benchmarks.paper.grid import grid_figures
from benchmarks.paper.grid_pages import written_grid
from benchmarks.paper.pictures import grid_picture
from benchmarks.paper.printed import S1_TEST, S2_TEST, S2_VALIDATION, TEST, VALIDATION
from benchmarks.paper.stages import TEST as TEST_VIDEOS
from benchmarks.paper.stages import seed_of
from recipes.stages import Stage, in_order, run
from recipes.tiny.__main__ import CAPTIONS, EMBEDDER, FAST, LABELS, REASONER
from safelens.data.records import Record, write_records
from safelens.evaluate.answer_log import read_answers, write_answers
from safelens.evaluate.answers import Answer
from safelens.policy import Policy

LABELS_OF_POLICY = Policy.load("default").labels
SIZE = {name: 3.0 - rank for rank, name in enumerate(FAMILIES)}


def answers(records, *, wrong, gflops):
    """All right but for the first so many."""
    found = []
    for row, record in enumerate(records):
        truth = record.labels[0] if record.labels else "safe"
        label = LABELS_OF_POLICY[(LABELS_OF_POLICY.index(truth) + (row < wrong)) % 7]
        found.append(
            Answer(
                id=record.id,
                outcome="decided",
                flags=() if label == "safe" else (label,),
                label=label,
                seconds={"screen": gflops / 10},
                gflops=gflops,
            )
        )
    return found


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    records = [
        Record(
            id=f"t{i}",
            video=f"t{i}.mp4",
            labels=() if (label := LABELS_OF_POLICY[i % 7]) == "safe" else (label,),
            source="made",
        )
        for i in range(CLIPS + 14)
    ]
    (TEST_VIDEOS.folder(root) / "data").mkdir(parents=True)
    write_records(TEST_VIDEOS.folder(root) / "data" / "records.jsonl", records)
    for screens, deliberates in PAIRS:
        # Qwen3-VL with itself has answered on more videos; those count for nothing here.
        some = records if screens == deliberates == QWEN else records[:CLIPS]
        folder = pair(screens, deliberates).folder(root) / "answers" / "system"
        s1, both = SIZE[screens], SIZE[screens] + SIZE[deliberates]
        write_answers(folder / "screen.jsonl", answers(some, wrong=70, gflops=s1))
        wrong = round(70 - 10 * both)
        write_answers(folder / "deliberate.jsonl", answers(some, wrong=wrong, gflops=both))
    return grid_figures(root)


def test_figures_are_those_of_the_answers(figures):
    assert figures["videos"] == CLIPS
    assert [one["embedder"] for one in figures["s1"]] == list(FAMILIES)
    for one in figures["s1"]:
        assert one["accuracy"]["avg_acc"]["mean"] == pytest.approx(1 - 70 / CLIPS)
        assert one["gflops"]["mean"] == SIZE[one["embedder"]]
    assert [(one["embedder"], one["reasoner"]) for one in figures["s2"]] == list(PAIRS)
    for one in figures["s2"]:
        both = SIZE[one["embedder"]] + SIZE[one["reasoner"]]
        assert one["gflops"]["mean"] == pytest.approx(both)
        assert one["seconds"]["mean"] == pytest.approx(both / 10)
        assert one["accuracy"]["avg_acc"]["mean"] == pytest.approx(1 - (70 - 10 * both) / CLIPS)


def test_the_page_has_every_pair_beside_the_papers(figures):
    page = written_grid(figures)
    lines = page.splitlines()
    assert sum("| ours |" in line for line in lines) == 3 + 9
    assert sum("| paper |" in line for line in lines) == 2 * (3 + 9)
    assert all("SafeWatch-" in line for line in lines if "| paper |" in line)
    paper = "| LFM2.5-VL-450M, Qwen3-VL-2B, SafeWatch-GenAI | paper | 84.6±1.3 53.2±1.0"
    assert paper.replace(" 53", " | 53") in page
    assert grid_picture(figures["s2"]).count("<svg") == 1


def test_what_the_paper_prints_twice_is_the_same():
    names = ("Qwen3-VL-2B", "Qwen3-VL-2B")
    assert S2_TEST[names] == TEST["SafeLens-S2"]
    assert S2_VALIDATION[names] == VALIDATION["SafeLens-S2"]
    assert S1_TEST[names[0]] == tuple(cell.split("±")[0] for cell in TEST["SafeLens-S1"])


def test_what_is_trained_once_is_shared():
    assert pair(QWEN, QWEN).digest == seed_of(0).test.digest
    own = backbone(QWEN)
    assert (own.embedder, own.fast) == (EMBEDDER, FAST)
    assert own.second.needs[1] is REASONER
    stages = list(in_order(*(pair(*names) for names in PAIRS)))
    assert sum(stage.name == "embedder" for stage in stages) == 3
    assert sum(stage.name == "reasoner" for stage in stages) == 3
    assert sum(stage.name == "bundle" for stage in stages) == 9


SMALL = {
    "train": {"clips": 48},
    "held": {"clips": 130},
    "val": {"clips": 20},
    "tokenizer": {"clips": 20, "vocab_size": 1024},
    "captioner": {"steps": 1, "shifted_steps": 1, "batch": 4},
    "seeing": {"steps": 2, "batch": 2},
    "base": {"steps": 2, "batch": 2},
    "labels": {"clips": 16, "noise": 0.0},
    "embedder": {"see": 1, "steps": 2, "batch": 2},
    "fast": {"folds": 2, "steps": 10, "false_refusal_rate": 0.1},
    "reasoner": {"steps": 1, "batch": 2, "rank": 4, "alpha": 8},
    "videos": {"clips": 1},
    "answers": {"clips": 1},
}


def small(*goals: Stage) -> list[Stage]:
    """The stages with less of everything, on all labels in place of those that a filter kept."""
    made: dict[str, Stage] = {}

    def copied(stage: Stage) -> Stage:
        if stage.name == "filter":
            return copied(LABELS)
        if stage.digest not in made:
            needs = tuple(dict.fromkeys(copied(need) for need in stage.needs))
            settings = stage.settings | SMALL.get(stage.name, {})
            made[stage.digest] = replace(stage, settings=settings, needs=needs)
        return made[stage.digest]

    return [copied(goal) for goal in goals]


def test_stages_run_and_a_mixed_bundle_answers(tmp_path):
    assert CAPTIONS in set(in_order(pair(QWEN, INTERNVL)))
    own, mixed = small(pair(INTERNVL, INTERNVL), pair(QWEN, INTERNVL))
    folders = run(own, mixed, root=tmp_path)
    for folder in folders:
        for stage in ("screen", "deliberate"):
            [answer] = read_answers(folder / "answers" / "system" / f"{stage}.jsonl")
            assert answer.outcome == "decided", answer.error
            assert np.isfinite(answer.gflops)
    models = [
        sorted(p.name for p in need.folder(tmp_path).glob("bundle/*") if p.is_dir())
        for stage in (own, mixed)
        for need in stage.needs
        if need.name == "bundle"
    ]
    assert ["reasoner" in names for names in models] == [False, True]
