"""The whole recipe of the embedded bundle in miniature: it runs, resumes after kills, and packs."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.stages import Stage, in_order, run
from recipes.tiny import steady
from recipes.tiny.__main__ import CAPTIONER, EMBEDDER, FAST, STEADY
from recipes.tiny.pack import pack, pack_with_adapter
from safelens.bundle import Bundle
from safelens.cascade import SafeLens
from safelens.data.records import read_records, write_records
from safelens.pack import CARD
from safelens.policy import Policy
from safelens.prompts import deliberation_answer

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SMALL = {
    "train": {"clips": 96},
    "held": {"clips": 240},
    "val": {"clips": 70},
    "tokenizer": {"clips": 40, "vocab_size": 1024},
    "captioner": {"steps": 2, "shifted_steps": 1, "batch": 4},
    "seeing": {"steps": 3, "batch": 2},
    "base": {"steps": 4, "batch": 2},
    "labels": {"clips": 64},
    "noisy": {"see": 1, "steps": 2, "batch": 4},
    "influence": {"rank": 2},
    "filter": {},
    "embedder": {"see": 1, "steps": 3, "batch": 4},
    "fast": {"folds": 2, "steps": 20, "false_refusal_rate": 0.05},
    "captions": {"batch": 64},
    "traces": {},
    "reasoner": {"steps": 2, "batch": 2, "rank": 4, "alpha": 8},
    "unsteady": {},
    "fresh": {"clips": 12},
    "answers": {"batch": 4, "clips": 12},
    "steady": {"steps": 2, "batch": 2},
}


def explained(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """The stage that asks S2; after two steps it explains nothing, so words are put in its mouth."""
    steady.answer(out, settings, needs)
    policy, file = Policy.load("default"), out / "records.jsonl"
    told = [
        record.model_copy(
            update={"response": deliberation_answer(policy, "A clip.", "So it is.", record.labels)}
        )
        for record in read_records(file)
    ]
    assert len(told) == settings["clips"]
    write_records(file, told)


def small(goal: Stage) -> Stage:
    """The recipe's own stages with less of everything."""
    made: dict[str, Stage] = {}
    for stage in in_order(goal):
        needs = tuple(made[need.name] for need in stage.needs)
        made[stage.name] = replace(
            stage,
            settings=stage.settings | SMALL[stage.name],
            needs=needs,
            work=explained if stage.name == "answers" else stage.work,
        )
    return made[goal.name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    run(small(STEADY), root=root)
    return root


def test_what_it_packs_moderates(undisturbed, tmp_path):
    stages = {stage.name: stage for stage in in_order(small(STEADY))}
    parts = {s.name: stages[s.name].folder(undisturbed) for s in (EMBEDDER, CAPTIONER, FAST)}
    adapter = stages["steady"].folder(undisturbed)
    pack(parts | {"reasoner": adapter}, tmp_path / "bundle")
    with SafeLens.load(str(tmp_path / "bundle")) as lens:
        found = lens.moderate(next((ROOT / "samples").glob("safe*.mp4"))).verdict
    assert found.status in ("ok", "out_of_domain")
    # the same bundle, whether packed of the stages or of the bundle before
    before = Bundle.load(stages["unsteady"].folder(undisturbed) / "bundle")
    pack_with_adapter(before, adapter / "adapter", tmp_path / "other")
    one, other = (Bundle.load(tmp_path / name) for name in ("bundle", "other"))
    held = [
        {name: digest for name, digest in found.settings.files.items() if name != CARD}
        for found in (one, other, before)  # a card names the parts that it was written for
    ]
    assert held[0] == held[1] != held[2]


def test_killed_at_random_moments_it_ends_with_the_same_numbers(undisturbed, tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    dice = random.Random(7)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    kills = 0
    while True:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=dice.uniform(6, 12) if kills < 4 else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0
        break
    assert kills >= 2
    for stage in in_order(small(STEADY)):
        for file in (
            "records.jsonl",
            "adapter/adapter_model.safetensors",
            "model/model.safetensors",
        ):
            one, other = (stage.folder(root) / file for root in (undisturbed, tmp_path))
            if one.exists():
                assert one.read_bytes() == other.read_bytes(), f"{stage.name}: {file}"


if __name__ == "__main__":
    began = time.monotonic()
    run(small(STEADY), root=Path(sys.argv[1]))
    print(f"{time.monotonic() - began:.1f} s")
