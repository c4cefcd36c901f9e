"""`safelens curate captions|scores` from the command line, up to a reasoner that learns from them."""

import json

import pytest
import torch
from typer.testing import CliRunner

from safelens.captioner import Captioner
from safelens.cli import app
from safelens.curate import crossfit
from safelens.data.records import read_records, write_records
from safelens.safeworld.writer import write_dataset
from safelens.train import states
from safelens.video import ClipOptions, VideoReader

FRAME = ["--frame-pixels", str(48 * 48)]
FAST = [*FRAME, "--steps", 3]
NAMES = ("violence", "sexual", "safe")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve training and three validation clips of three made-up classes; one of these is damaged.

    Record 2 keeps the captions of the world; 7 is cut from what 6 was cut from.
    """
    out = tmp_path_factory.mktemp("world")
    write_dataset(out, clips=15, seed=3)
    records = []
    for i, record in enumerate(read_records(out / "records.jsonl")):
        name = NAMES[i % 3]
        changes = {
            "labels": () if name == "safe" else (name,),
            "captions": record.captions if i == 2 else (),
            "response": None,
            "split": "train" if i < 12 else "val",
            "group": "film" if i in (6, 7) else None,
        }
        records.append(record.model_copy(update=changes))
    (out / records[12].video).write_bytes(b"no video")
    write_records(out / "kept.jsonl", records)
    return out / "kept.jsonl", records


@pytest.fixture(scope="module")
def captioned(world, captioner_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("captioned") / "captioned.jsonl"
    done = run("curate", "captions", world[0], "--out", out, "--captioner", captioner_dir,
               "--max-new-tokens", 4)  # fmt: skip
    return out, done


@pytest.fixture(scope="module")
def scored(captioned, vlm_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "scored.jsonl"
    done = run("curate", "scores", captioned[0], "--out", out, "--model", vlm_dir,
               "--folds", 2, *FAST)  # fmt: skip
    return out, done


def test_captions_are_those_of_the_captioner_frame_by_frame(captioned, world, captioner_dir):
    out, done = captioned
    assert done.exit_code == 1, done.output  # a video cannot be read
    broken = world[1][12]
    assert f"{broken.id}: left out: " in done.stderr
    assert "13 records captioned" in done.stdout
    assert "1 had captions and are left as they are (--replace" in done.stdout
    assert "1 left out: their videos cannot be read" in done.stdout
    found = read_records(out)
    assert [r.id for r in found] == [r.id for r in world[1] if r.id != broken.id]
    assert found[2].captions == world[1][2].captions
    eyes = Captioner.load(captioner_dir, max_new_tokens=4)
    with VideoReader(ClipOptions(max_side=448)) as reader:
        clip = reader.read(found[0].video_path(out))
    assert [c.time_s for c in found[0].captions] == clip.timestamps.tolist()
    assert [c.text for c in found[0].captions] == eyes.caption(clip.frames)


def test_captions_on_a_cluster_are_those_of_one_machine(
    captioned, world, captioner_dir, tmp_path, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(world[0].parent)
    out = tmp_path / "c.jsonl"
    done = run("curate", "captions", world[0].name, "--out", out, "--captioner", captioner_dir,
               "--max-new-tokens", 4, "--engine", "ray", "--actor-cpus", 0.5)  # fmt: skip
    assert done.exit_code == 1, done.output
    assert done.stdout.replace(str(out), "") == captioned[1].stdout.replace(str(captioned[0]), "")
    found, wanted = read_records(out), read_records(captioned[0])
    assert [r.captions for r in found] == [r.captions for r in wanted]
    assert [r.id for r in found] == [r.id for r in wanted]
    assert all((out.parent / r.video).exists() for r in found)


def test_captions_go_on_after_an_interruption_and_a_kill(
    captioned, world, captioner_dir, tmp_path, monkeypatch
):
    describe, calls = Captioner.describe, []

    def interrupting(self, clips, batch_size=None, spent=None):
        calls.append(len(clips))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return describe(self, clips, batch_size, spent)

    monkeypatch.setattr(Captioner, "describe", interrupting)
    out = tmp_path / "c.jsonl"
    arguments = ["curate", "captions", world[0], "--out", out, "--captioner", captioner_dir]
    arguments += ["--batch", 1, "--max-new-tokens", 4]  # a clip at a time
    stopped = run(*arguments)
    assert stopped.exit_code == 130
    assert "what is written is whole" in stopped.stderr
    assert len(read_records(out)) == 5  # one of them had captions before
    with out.open("a") as file:
        file.write('{"id": "half a li')
    assert run(*arguments).exit_code == 1
    assert len(calls) == 5 + 9, "what was captioned is not captioned again"
    whole = [r.model_copy(update={"video": ""}) for r in read_records(captioned[0])]
    assert [r.model_copy(update={"video": ""}) for r in read_records(out)] == whole
    other = run(*arguments[:-1], 5)
    assert other.exit_code == 2
    assert "made with other settings (max_new_tokens 4, now 5)" in other.stderr


def test_scores_are_of_probes_that_did_not_train_on_them(scored, captioned, policy):
    out, done = scored
    assert done.exit_code == 0, done.output
    assert "warning: no record of class 'abuse'" in done.stderr
    assert "probe 2: fitted on " in done.stdout
    assert "all together: average class accuracy " in done.stdout
    assert "14 records scored" in done.stdout
    before, after = read_records(captioned[0]), read_records(out)
    assert [r.id for r in after] == [r.id for r in before]
    for record in after:
        assert set(record.scores) == set(policy.labels)
        assert sum(record.scores.values()) == pytest.approx(1, abs=1e-5)
        assert record.video_path(out).exists()
    kept = [r.model_copy(update={"scores": None, "video": ""}) for r in after]
    assert kept == [r.model_copy(update={"video": ""}) for r in before]


def test_traces_and_the_reasoner_read_the_result(scored, vlm_dir, tmp_path):
    traces = tmp_path / "traces.jsonl"
    told = run("curate", "traces", scored[0], "--out", traces, "--generator", "rules")
    # an untrained captioner misreads what a sign says; such records are named
    assert told.stderr.count("misread the text") == told.stderr.count("left out"), told.output
    assert len(read_records(traces)) >= 8, told.output
    done = run("train", "reasoner", traces, "--model", vlm_dir, "--out", tmp_path / "s2",
               "--epochs", 0.3, "--batch", 2, "--rank", 2, *FRAME)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "s2" / "adapter" / "adapter_model.safetensors").is_file()
    assert len((tmp_path / "s2" / "log.jsonl").read_text().splitlines()) <= 2


def test_interrupted_scores_go_on_and_other_commands_share_the_states(
    scored, captioned, vlm_dir, tmp_path, monkeypatch
):
    screen, calls = states._screened, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return screen(*arguments)

    monkeypatch.setattr(states, "CHUNK", 4)
    monkeypatch.setattr(states, "_screened", interrupting)
    arguments = ["curate", "scores", captioned[0], "--model", vlm_dir, *FAST, "--batch", 2]
    stopped = run(*arguments, "--folds", 2, "--out", tmp_path / "whole.jsonl")
    assert stopped.exit_code == 130
    assert "give the same command again" in stopped.stderr
    assert not (tmp_path / "whole.jsonl").exists()
    done = run(*arguments, "--folds", 2, "--out", tmp_path / "whole.jsonl")
    assert done.exit_code == 0, done.output
    assert len(calls) == 4 + 5, "the first chunk was not screened again"
    folder = tmp_path / "whole.jsonl.states"

    held = run(*arguments, "--held-out", 0.5, "--out", tmp_path / "half.jsonl", "--states", folder)
    assert held.exit_code == 0, held.output
    half = read_records(tmp_path / "half.jsonl")
    without = [r for r in half if r.scores is None]
    assert len(without) == 6
    assert all(r.split == "train" for r in without)
    assert f"{len(without)} written without scores" in held.stdout
    assert f"fitted on {len(without)} records, scored {14 - len(without)}" in held.stdout

    probe = run("train", "probe", captioned[0], "--model", vlm_dir, "--out", tmp_path / "s1",
                *FAST, "--states", folder, "--false-refusal-rate", 0.5)  # fmt: skip
    assert probe.exit_code == 0, probe.output
    assert len(calls) == 9, "nothing was screened again"
    other = run(*arguments, "--layout", "video_first", "--out", tmp_path / "o.jsonl", "--folds", 2,
                "--states", folder)  # fmt: skip
    assert other.exit_code == 1
    assert "another layout: name another folder" in other.stderr


def test_scores_are_those_of_the_core_on_the_stored_states(scored, captioned, policy, vlm_dir):
    """The file's numbers are those of probes fitted by hand on what the store holds."""
    from safelens.probe import ProbeConfig, fit_probe
    from safelens.train.state_store import StateStore, video_key

    out, _ = scored
    folder = out.with_name(f"{out.name}.states")
    about = json.loads((folder / "states.json").read_text())
    store = StateStore(folder, about)
    records = read_records(captioned[0])
    keys = [video_key(str(r.video_path(captioned[0]).resolve())) for r in records]
    seen = store.read(keys)
    labels = torch.tensor([policy.labels.index(r.label) for r in records])
    train = torch.tensor([r.split == "train" for r in records])
    groups = crossfit.groups_of(records, seen.sha256)
    assert groups[6] == groups[7]
    assert len(set(groups)) == 13
    fold = crossfit.divide(torch.where(train, labels, -1), groups, [0.5, 0.5], train, seed=0)
    config = ProbeConfig(input_dim=seen.question.shape[-1], labels=policy.labels)
    written = read_records(out)
    for k in (0, 1):
        rows = (fold != k) & train
        fit = fit_probe(seen.question[rows], None, labels[rows], config, steps=3, lr=1e-4, seed=k)
        for i in (fold == k).nonzero()[:, 0].tolist():
            expected = fit.probe.predict(seen.question[i : i + 1])[0].tolist()
            found = [written[i].scores[label] for label in policy.labels]
            assert found == pytest.approx(expected, abs=1e-6)


def test_wrong_use_is_said_before_anything_is_computed(captioned, world, vlm_dir, tmp_path):
    data, out = captioned[0], tmp_path / "o.jsonl"
    scores = ("curate", "scores", data, "--out", out, "--model", vlm_dir)
    captions = ("curate", "captions", data, "--captioner", vlm_dir)
    val = tmp_path / "val.jsonl"
    write_records(val, [r.model_copy(update={"video": "/none.mp4", "split": "val"})
                        for r in world[1]])  # fmt: skip
    for arguments, said in (
        ((*scores, "--folds", 5), "class 'sexual' has 4 records: 5 parts need one each"),
        ((*scores, "--held-out", 1.5), "--held-out 1.5: expected a share"),
        ((*scores[:3], "--out", data, "--model", vlm_dir), "is the input"),
        ((*scores[:2], val, *scores[3:]), "no record can be trained on"),
        ((*scores[:5], "--model", tmp_path / "none", "--folds", 2), "cannot load"),
        ((*captions, "--out", out), "expected a model of type florence2"),
        ((*captions, "--out", data), "is the input"),
        ((*captions, "--out", out, "--actors", 2), "--actors belongs to --engine ray"),
        ((*captions, "--out", tmp_path), "is a folder"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    assert not out.exists()
