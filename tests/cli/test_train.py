"""`safelens train` from the command line, part after part, on a small generated world."""

import json

import pytest
import torch
from typer.testing import CliRunner

from safelens.cli import app
from safelens.data.records import read_records, write_records
from safelens.prompts import deliberation_answer
from safelens.safeworld.writer import write_dataset
from safelens.train import loop

FRAME = ["--frame-pixels", str(48 * 48)]


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def world(tmp_path_factory, policy):
    """Records with captions, made-up labels, scores and responses; one video is damaged."""
    out = tmp_path_factory.mktemp("world")
    write_dataset(out, clips=30, seed=3)
    records = []
    for i, record in enumerate(read_records(out / "records.jsonl")):
        name = policy.labels[i % 7]  # every class has rows
        labels = () if name == "safe" else (name,)
        changes = {
            "labels": labels,
            "true_labels": None,
            "split": "train" if i < 21 else "val",
            "scores": dict.fromkeys(policy.labels, 1 / 7),
            "response": deliberation_answer(policy, record.description, record.explanation, labels),
        }
        records.append(record.model_copy(update=changes))
    broken = next(r for r in records if r.split == "train")
    (out / broken.video).write_bytes(b"no video")
    write_records(out / "records.jsonl", records)
    return out / "records.jsonl", broken.id


@pytest.fixture(scope="module")
def embedder(world, vlm_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedder")
    done = run("embedder", world[0], "--model", vlm_dir, "--out", out, "--epochs", 0.4,
               "--batch", 4, "--rank", 2, *FRAME)  # fmt: skip
    assert done.exit_code == 0, done.output
    return out, done


def test_embedder_is_saved_whole_and_says_what_it_left_out(embedder, world, vlm_dir):
    from transformers import AutoModelForImageTextToText

    out, done = embedder
    before = AutoModelForImageTextToText.from_pretrained(vlm_dir).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(out / "model").state_dict()
    assert before.keys() == after.keys()
    changed = {n for n in before if not torch.equal(before[n].float(), after[n].float())}
    assert any("language_model" in n for n in changed)
    assert not any("visual" in n for n in changed)
    seen = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert {"guardrail", "captions", "loss"} <= seen[0].keys()
    if world[1] in done.stderr:
        assert "cannot be read" in done.stderr


def test_embedder_without_captions_learns_the_answer_alone(world, vlm_dir, tmp_path):
    bare = [r.model_copy(update={"captions": (), "video": str(r.video_path(world[0]))})
            for r in read_records(world[0])]  # fmt: skip
    write_records(tmp_path / "bare.jsonl", bare)
    done = run("embedder", tmp_path / "bare.jsonl", "--model", vlm_dir, "--out", tmp_path / "out",
               "--epochs", 0.1, "--batch", 2, "--rank", 0, "--layout", "video_first", *FRAME)  # fmt: skip
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert "captions" not in row
    assert row["loss"] == row["guardrail"]


def test_probe_and_guard_are_fitted_on_the_embedders_states(embedder, world, tmp_path):
    from safelens.domain import DomainGuard
    from safelens.probe import RollingAttentionProbe

    done = run("probe", world[0], "--model", embedder[0] / "model", "--out", tmp_path,
               "--steps", 30, "--false-refusal-rate", 0.2, *FRAME)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"{world[1]}: left out" in done.stderr
    assert "1 records left out" in done.stderr
    assert RollingAttentionProbe.load(tmp_path / "probe").config.input_dim == 64
    assert DomainGuard.load(tmp_path / "domain.safetensors") is not None
    assert list((tmp_path / "states").glob("*.safetensors"))


def test_parallel_parts_make_a_bundle_that_prunes(world, vlm_dir, captioner_dir, tmp_path):
    """Embedder, probe, scores and reasoner in one encoding, packed, and asked about a video."""
    reads = ["--policy-encoding", "parallel", "--prune", 0.3]
    common = [*FRAME, *reads]
    embedder = run("embedder", world[0], "--model", vlm_dir, "--out", tmp_path / "e", "--epochs", 0.2,
                   "--batch", 3, "--rank", 2, "--random-prune", *common)  # fmt: skip
    assert embedder.exit_code == 0, embedder.output
    row = json.loads((tmp_path / "e" / "log.jsonl").read_text().splitlines()[0])
    assert "captions" not in row  # a thinned video is asked for none
    model = tmp_path / "e" / "model"
    probe = run("probe", world[0], "--model", model, "--out", tmp_path / "p", "--steps", 20,
                "--false-refusal-rate", 0.2, "--states", tmp_path / "states", *common)  # fmt: skip
    assert probe.exit_code == 0, probe.output
    two = [r.model_copy(update={"labels": ("violence",) if i % 2 else (), "response": None})
           for i, r in enumerate(read_records(world[0]))]  # fmt: skip
    write_records(world[0].with_name("two.jsonl"), two)  # of seven classes each fold would lack one
    scores = CliRunner().invoke(app, ["curate", "scores", *map(str, [world[0].with_name("two.jsonl"), "--model", model,
                "--out", tmp_path / "s.jsonl", "--folds", 2, "--steps", 20, *common,
                "--states", tmp_path / "states"])])  # fmt: skip
    assert scores.exit_code == 1, scores.output  # a video is damaged
    assert len(read_records(tmp_path / "s.jsonl")) == len(two) - 1
    other = run("probe", world[0], "--model", model, "--out", tmp_path / "p2", "--steps", 20,
                "--states", tmp_path / "states", *FRAME)  # fmt: skip
    assert other.exit_code == 1
    assert "states" in other.stderr
    reasoner = run("reasoner", world[0], "--model", model, "--out", tmp_path / "r", "--epochs", 0.2,
                   "--batch", 3, "--rank", 2, "--random-prune", *common)  # fmt: skip
    assert reasoner.exit_code == 0, reasoner.output
    bundle = tmp_path / "bundle"
    packed = CliRunner().invoke(app, ["bundle", *map(str, ["pack", "--out", bundle, "--name", "watch",
                "--model", model, "--probe", tmp_path / "p" / "probe", "--captioner", captioner_dir,
                "--adapter", tmp_path / "r" / "adapter", "--max-side", 48, "--max-caption-tokens", 4,
                "--max-new-tokens", 4, "--tau", 0, *common])])  # fmt: skip
    assert packed.exit_code == 0, packed.output
    video = str(next(r for r in read_records(world[0]) if r.id != world[1]).video_path(world[0]))
    done = CliRunner().invoke(app, ["moderate", video, "--bundle", str(bundle), "--json"])
    provenance = json.loads(done.stdout)["provenance"]
    assert provenance["policy_encoding"] == "parallel"
    assert provenance["prune_keep"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prune", 0.5], "needs policy_encoding: parallel"),
        (["--policy-encoding", "parallel", "--random-prune"], "add --prune SHARE"),
        (["--policy-encoding", "parallel", "--prune", 0], "above 0"),
        (["--policy-encoding", "parallel", "--prune", 0.5, "--prune-layer", 9], "does not attend"),
    ],
)
def test_encodings_that_do_not_fit_together(world, vlm_dir, tmp_path, options, message):
    done = run("embedder", world[0], "--model", vlm_dir, "--out", tmp_path, *FRAME, *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_captioner_trains_on_captions(world, captioner_dir, tmp_path):
    done = run("captioner", world[0], "--model", captioner_dir, "--out", tmp_path,
               "--epochs", 0.2, "--batch", 2, "--lr", 1e-3)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("separate", [False, True])
def test_reasoner_learns_traces(embedder, world, tmp_path, separate):
    flags = ["--separate"] if separate else []
    done = run("reasoner", world[0], "--model", embedder[0] / "model", "--out", tmp_path,
               "--epochs", 0.2, "--batch", 3, "--rank", 2, *FRAME, *flags)  # fmt: skip
    assert done.exit_code == 0, done.output
    part = "model/model.safetensors" if separate else "adapter/adapter_model.safetensors"
    assert (tmp_path / part).is_file()


def test_reasoner_goes_on_with_words_in_captions(embedder, world, tmp_path):
    from safetensors.torch import load_file

    arguments = [
        "reasoner",
        world[0],
        "--model",
        embedder[0] / "model",
        "--epochs",
        0.2,
        "--batch",
        3,
    ]
    first = run(*arguments, "--out", tmp_path / "a", "--rank", 2, *FRAME)
    assert first.exit_code == 0, first.output
    going = ["--adapter", tmp_path / "a" / "adapter", *FRAME]
    plain = run(*arguments, "--out", tmp_path / "b", *going)
    assert plain.exit_code == 0, plain.output
    noisy = run(*arguments, "--out", tmp_path / "c", "--caption-noise", 1, *going)
    assert noisy.exit_code == 0, noisy.output
    first_loss = [
        json.loads((tmp_path / n / "log.jsonl").read_text().splitlines()[0])["loss"] for n in "bc"
    ]
    assert first_loss[0] != first_loss[1]  # the same clips and adapter, other captions
    a, b = (load_file(tmp_path / n / "adapter/adapter_model.safetensors") for n in "ab")
    assert {n: w.shape for n, w in a.items()} == {n: w.shape for n, w in b.items()}

    wrong = run(*arguments, "--out", tmp_path / "d", "--adapter", tmp_path / "none", *FRAME)
    assert wrong.exit_code == 2
    assert "none" in wrong.stderr
    both = run(*arguments, "--out", tmp_path / "e", "--separate", *going)
    assert both.exit_code == 2
    assert "give one of them" in both.stderr


def test_interrupted_and_continued_gives_the_same_model(world, vlm_dir, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    arguments = ["embedder", world[0], "--model", vlm_dir, "--epochs", 0.5, "--batch", 3,
                 "--rank", 2, *FRAME]  # fmt: skip
    whole = run(*arguments, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output

    average = loop._average_gradients
    calls = []

    def interrupting(parameters, state):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        average(parameters, state)

    monkeypatch.setattr(loop, "_average_gradients", interrupting)
    stopped = run(*arguments, "--out", tmp_path / "parts")
    assert stopped.exit_code == 130
    assert "give the same command again" in stopped.stderr
    monkeypatch.setattr(loop, "_average_gradients", average)
    assert run(*arguments, "--out", tmp_path / "parts").exit_code == 0
    a, b = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_wrong_use_is_said(world, vlm_dir, tmp_path):
    records, _ = world
    absent = run("embedder", records, "--model", tmp_path / "none", "--out", tmp_path / "o")
    assert absent.exit_code == 2
    assert "error: " in absent.stderr
    empty = run("embedder", records, "--model", vlm_dir, "--out", tmp_path / "o", "--split", "no")
    assert empty.exit_code == 2
    assert "no records in the part 'no'" in empty.stderr
    none = run("reasoner", records, "--model", vlm_dir, "--out", tmp_path / "o", "--rank", 0)
    assert none.exit_code == 2
    assert "--separate" in none.stderr
