"""Commands on a real cluster of this machine, a process killed: what they write is what one machine writes."""

import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import ray.cloudpickle
from typer.testing import CliRunner

from safelens.cli import app
from safelens.curate import passes
from safelens.curate.passes import InfluenceStore
from safelens.data.records import read_records, write_records
from safelens.engine import cluster as engine_cluster
from safelens.engine import mapping
from safelens.engine.cluster import Pool, connected
from safelens.evaluate.answer_log import read_answers
from safelens.evaluate.run import run_system, take_samples
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.safeworld.writer import write_dataset
from safelens.train import states

# Actors have no path to this folder.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
FRAME = ["--frame-pixels", 48 * 48]
NAMES = ("violence", "sexual", "safe")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def cluster():
    """Options that have a command run on a cluster, which all commands of this file share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(None, [Pool(2, 2, cpus=0.5)]):
            for module in (engine_cluster, mapping):
                patch.setattr(module, "connected", lambda *_: nullcontext())
            yield ["--engine", "ray", "--actor-cpus", 0.5]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve training and six validation clips of three made-up classes; one of these is damaged."""
    out = tmp_path_factory.mktemp("world")
    write_dataset(out, clips=18, seed=3)
    records = []
    for i, record in enumerate(read_records(out / "records.jsonl")):
        name = NAMES[i % 3]
        changes = {
            "labels": () if name == "safe" else (name,),
            "response": None,
            "split": "train" if i < 12 else "val",
        }
        records.append(record.model_copy(update=changes))
    (out / records[12].video).write_bytes(b"no video")
    write_records(out / "records.jsonl", records)
    return out / "records.jsonl", records


@dataclass(frozen=True)
class Hurt:
    """A work whose process dies with the first block that any is given."""

    work: Any
    sign: str

    def load(self):
        run = self.work.load()

        def hurt(items):
            try:
                open(self.sign, "x").close()
            except FileExistsError:
                return run(items)
            os.kill(os.getpid(), signal.SIGKILL)

        return hurt


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """Kills one process of what is mapped; gives the file that tells that it did."""
    mapped, sign = mapping.mapped, tmp_path / "killed"
    monkeypatch.setattr(
        mapping,
        "mapped",
        lambda work, *rest: mapped(Hurt(work, str(sign)), *rest),
    )
    return sign


def rows(folder, part):
    """What influence stored of a pass."""
    return InfluenceStore.open(folder / "checkpoint-0").rows(part).to_pylist()


def test_influence_is_that_of_one_machine(world, vlm_dir, cluster, killed, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", 6)
    fixed = ["curate", "influence", world[0], "--model", vlm_dir, "--rank", 4, *FRAME]
    here = run(*fixed, "--out", tmp_path / "here")
    there = run(*fixed, "--out", tmp_path / "there", *cluster)
    assert here.exit_code == there.exit_code == 0, there.output
    assert killed.exists()
    for part in ("val", "train"):
        for a, b in zip(*(rows(tmp_path / name, part) for name in ("here", "there")), strict=True):
            for name in a:
                exact = name in ("id", "label", "error") or a["error"] is not None
                assert b[name] == (
                    a[name] if exact else pytest.approx(a[name], rel=1e-5, nan_ok=True)
                ), name
    lost = tmp_path / "there" / "checkpoint-0" / "train-00001.parquet"
    files = {p: p.stat().st_mtime_ns for p in lost.parent.iterdir()}
    lost.unlink()
    assert run(*fixed, "--out", tmp_path / "there").exit_code == 0
    again = {p: p.stat().st_mtime_ns for p in lost.parent.iterdir()}
    assert {p for p in files if again[p] != files[p]} == {lost}, "what is there is not run again"


def test_scores_are_those_of_one_machine(world, vlm_dir, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "CHUNK", 4)
    fixed = ["curate", "scores", world[0], "--model", vlm_dir, "--folds", 2, "--steps", 3, *FRAME]
    done = [
        run(*fixed, "--out", tmp_path / f"{name}.jsonl", *more)
        for name, more in (("here", ()), ("there", cluster))
    ]
    assert [d.exit_code for d in done] == [1, 1], done[1].output  # a video cannot be read
    assert f"{world[1][12].id}: left out: " in done[1].stderr
    here, there = (read_records(tmp_path / f"{name}.jsonl") for name in ("here", "there"))
    assert len(there) == 17
    assert there == here
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "there.jsonl.states").iterdir()}
    again = run(*fixed, "--out", tmp_path / "there.jsonl")
    assert "17 records scored" in again.stdout
    assert read_records(tmp_path / "there.jsonl") == there
    assert {p: p.stat().st_mtime_ns for p in files} == files, "nothing is screened twice"


def test_evaluation_is_that_of_one_machine(world, bundle_dir, cluster, tmp_path, monkeypatch):
    data, file = tmp_path / "records.jsonl", tmp_path / "systems.yaml"
    records = [r.model_copy(update={"video": str(r.video_path(world[0]))}) for r in world[1][9:14]]
    write_records(data, records)
    bundle = os.path.relpath(bundle_dir, tmp_path)
    file.write_text(f"systems:\n  small: {{kind: safelens, bundle: '{bundle}'}}\n")
    out = tmp_path / "there"
    monkeypatch.chdir(tmp_path)
    done = run("evaluate", data, "--systems", file.name, "--out", out, *cluster)
    assert done.exit_code == 1, done.output  # a video cannot be read
    system, samples = SafeLensSystem("small", str(bundle_dir)), take_samples(records)
    for stage, here in run_system("small", system, samples, tmp_path / "here").answers.items():
        there = read_answers(out / "answers" / "small" / f"{stage}.jsonl")
        assert [a.outcome == "failed" for a in there] == [False, False, False, True, False]
        for a, b in zip(here, there, strict=True):
            assert a.seconds.keys() == b.seconds.keys()
            assert a == b.model_copy(update={"seconds": a.seconds})
    again = run_system("small", system, samples, out)
    assert again.earlier == 4
    assert again.memory.host_bytes > 0
