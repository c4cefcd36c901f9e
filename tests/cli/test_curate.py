"""`safelens curate influence|filter` from the command line, on a small generated world."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from safelens.cli import app
from safelens.curate import passes
from safelens.curate.passes import InfluenceStore
from safelens.data.records import read_records, write_records
from safelens.safeworld.writer import write_dataset

FRAME = ["--frame-pixels", str(48 * 48)]
NAMES = ("violence", "sexual", "safe")


def run(*arguments):
    return CliRunner().invoke(app, ["curate", *map(str, arguments)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve training and six validation clips of three made-up classes; one video is damaged."""
    out = tmp_path_factory.mktemp("world")
    write_dataset(out, clips=18, seed=3)
    records = []
    for i, record in enumerate(read_records(out / "records.jsonl")):
        name = NAMES[i % 3]
        changes = {
            "labels": () if name == "safe" else (name,),
            "true_labels": None,
            "response": None,
            "split": "train" if i < 12 else "val",
        }
        records.append(record.model_copy(update=changes))
    (out / records[4].video).write_bytes(b"no video")
    write_records(out / "records.jsonl", records)
    return out / "records.jsonl", records[4].id


@pytest.fixture(scope="module")
def finished(world, vlm_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "influence"
    done = run("influence", world[0], "--model", vlm_dir, "--out", out, "--rank", 4, *FRAME)
    assert done.exit_code == 1, done.output  # one sample gave no gradient
    return out, done


def test_influence_names_what_gave_no_gradient(finished, world):
    _, done = finished
    assert world[1] in done.stderr
    assert "12 training samples, 1 without a gradient" in done.stdout


def test_filter_writes_decisions_suspects_matrix_and_gallery(finished, world, tmp_path):
    page, matrix = tmp_path / "g.html", tmp_path / "m.npy"
    done = run("filter", world[0], finished[0], "--out", tmp_path, "--gallery", page,
               "--matrix", matrix, "--false-drop-rate", 0.4)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "is dropped: a rate" not in done.stderr
    lines = [json.loads(x) for x in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    lost = [line for line in lines if line["own"] is None]
    assert [line["id"] for line in lost] == [world[1]]
    assert not lost[0]["kept"]
    assert "cannot" in lost[0]["reasons"][0] or "video" in lost[0]["reasons"][0]
    for line in lines:
        if line["own"] is not None:
            good = line["own"] > line["least_own"] and line["all"] >= line["least_all"]
            assert line["kept"] == good
            assert bool(line["reasons"]) != line["kept"]
    kept = {r.id for r in read_records(tmp_path / "kept.jsonl")}
    assert kept == {line["id"] for line in lines if line["kept"]}
    assert f"{len(kept)} of 12 kept" in done.stdout
    assert np.load(matrix).shape == (12, 6)
    suspects = [json.loads(x) for x in (tmp_path / "suspects.jsonl").read_text().splitlines()]
    assert f"{len(suspects)} of 6 validation samples to look at" in done.stdout
    html = page.read_text()
    assert html.count("<section>") == 7
    assert "data:image/jpeg;base64," in html
    assert "most harmful" in html


def test_the_printed_rule_is_one_option_away(finished, world, tmp_path):
    done = run("filter", world[0], finished[0], "--out", tmp_path, "--score", "tracin")
    assert done.exit_code == 0, done.output
    printed = [json.loads(x) for x in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    for line in printed:
        assert line["least_own"] == line["least_all"] == 0
        assert line["kept"] == (line["own"] is not None and line["own"] > 0 <= line["all"])
    usual = tmp_path / "usual"
    said = run("filter", world[0], finished[0], "--out", usual).stderr
    assert "nothing of violence is dropped: a rate of 0.05 needs 19 validation samples" in said
    other = [json.loads(x) for x in (usual / "decisions.jsonl").read_text().splitlines()]
    assert [a["own"] for a in printed] != [b["own"] for b in other]
    assert [a["loss"] for a in printed] == [b["loss"] for b in other]


def test_interrupted_and_continued_gives_the_same(finished, world, vlm_dir, tmp_path, monkeypatch):
    from safelens.curate.samples import RecordSamples

    example, calls = RecordSamples.example, []

    def interrupting(self, row):
        calls.append(row)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return example(self, row)

    monkeypatch.setattr(passes, "CHUNK", 4)
    monkeypatch.setattr(RecordSamples, "example", interrupting)
    arguments = ["influence", world[0], "--model", vlm_dir, "--out", tmp_path / "i", "--rank", 4]
    stopped = run(*arguments, *FRAME)
    assert stopped.exit_code == 130
    assert "give the same command again" in stopped.stderr
    calls.clear()
    calls.extend(range(12))
    assert run(*arguments, *FRAME).exit_code == 1
    assert len(calls) < 12 + 18, "finished chunks were not run again"
    for name in ("a", "b"):
        source = finished[0] if name == "a" else tmp_path / "i"
        run("filter", world[0], source, "--out", tmp_path / name)
    one, other = (
        [json.loads(x) for x in (tmp_path / n / "decisions.jsonl").read_text().splitlines()]
        for n in ("a", "b")
    )
    for a, b in zip(one, other, strict=True):
        assert (a["id"], a["kept"]) == (b["id"], b["kept"])
        if a["own"] is not None:
            assert a["own"] == pytest.approx(b["own"], rel=1e-3, abs=1e-5)


def test_captions_in_the_prompt_change_gradients_and_a_record_without_is_named(
    world, vlm_dir, finished, tmp_path
):
    bare = [
        r.model_copy(update={"captions": (), "video": str(r.video_path(world[0]))})
        if i == 0
        else r.model_copy(update={"video": str(r.video_path(world[0]))})
        for i, r in enumerate(read_records(world[0]))
    ]
    write_records(tmp_path / "records.jsonl", bare)
    arguments = ["influence", tmp_path / "records.jsonl", "--model", vlm_dir, "--rank", 4, *FRAME]
    done = run(*arguments, "--out", tmp_path / "run", "--read-captions")
    assert done.exit_code == 1
    assert f"{bare[0].id}: no captions" in done.stderr
    told, untold = (
        InfluenceStore.open(folder / "checkpoint-0").rows("train").to_pylist()
        for folder in (tmp_path / "run", finished[0])
    )
    for a, b in zip(told, untold, strict=True):
        if a["z"] and b["z"]:
            assert abs(a["loss"] - b["loss"]) > 1e-4


def test_wrong_use_is_said(world, vlm_dir, finished, tmp_path):
    records = [r for r in read_records(world[0]) if r.split == "train" or r.labels]
    moved = [r.model_copy(update={"video": str(r.video_path(world[0]))}) for r in records]
    write_records(tmp_path / "no-safe.jsonl", moved)
    gap = run("influence", tmp_path / "no-safe.jsonl", "--model", vlm_dir, "--out", tmp_path / "i")
    assert gap.exit_code == 2
    assert "no validation record of safe" in gap.stderr
    other = run(
        "influence", world[0], "--model", vlm_dir, "--out", finished[0], "--rank", 3, *FRAME
    )
    assert other.exit_code == 2
    assert "other settings (rank)" in other.stderr
    unfinished = run("filter", world[0], tmp_path / "none", "--out", tmp_path / "o")
    assert unfinished.exit_code == 2
    assert "no finished run" in unfinished.stderr
    rates = run("influence", world[0], "--model", vlm_dir, "--learning-rate", 1,
                "--learning-rate", 2, "--out", tmp_path / "x")  # fmt: skip
    assert rates.exit_code == 2
