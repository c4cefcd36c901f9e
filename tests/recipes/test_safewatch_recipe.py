"""The full-size recipe on a small world with small models: its commands, its plan, its chain of stages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from attention_flops import flop_counter
from typer.testing import CliRunner

from recipes.safewatch.algorithm import algorithm, shown
from recipes.safewatch.checks import disk, look
from recipes.safewatch.config import ConfigError, load
from recipes.safewatch.costs import Lengths, Model, activation_bytes, captioner_flops
from recipes.safewatch.plan import plan
from safelens.cli import app
from safelens.data.records import read_records, write_records
from safelens.policy import Policy
from safelens.safeworld.writer import write_dataset

pytestmark = pytest.mark.long

FULL = Path(__file__).parents[2] / "recipes" / "safewatch" / "safewatch.yaml"
PIXELS = 48 * 48


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """SafeWorld's clips under labels that take turns: enough of every class in each part to be filtered."""
    out = tmp_path_factory.mktemp("world")
    write_dataset(out, clips=42, seed=3)
    classes = Policy.load("default").labels
    records = []
    for i, record in enumerate(read_records(out / "records.jsonl")):
        name = classes[i % len(classes)]
        labels = () if name == "safe" else (name,)
        split = "val" if i % 4 == 3 else "train"
        changes = {"labels": labels, "true_labels": None, "response": None, "split": split}
        records.append(record.model_copy(update=changes))
    write_records(out / "records.jsonl", records)
    return out / "records.jsonl"


@pytest.fixture
def settings(world, vlm_dir, captioner_dir, tmp_path):
    """Writes a file of settings for the small models; keywords change it."""

    def write(**changes):
        fields = yaml.safe_load(FULL.read_text())
        small = {
            "root": str(tmp_path / "out"),
            "data": {"train": [str(world)]},
            "model": str(vlm_dir),
            "captioner": str(captioner_dir),
            "processes": 1,
            "frame_pixels": PIXELS,
            "bf16": False,
            "embedder": {"batch": 4, "micro_batch": 4, "epochs": 0.3, "rank": 2},
            "influence": {"rank": 4, "score": "whitened"},
            "probe": {"steps": 30, "false_refusal_rate": 0.2},
            "scores": {"folds": 2},
            "traces": {"generator": "rules"},
            "reasoner": {"batch": 4, "micro_batch": 4, "epochs": 0.3, "rank": 2},
        }
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(fields | small | changes))
        return path

    return write


def recipe(*arguments):
    """The recipe as a user runs it."""
    root = FULL.parents[2]
    env = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "recipes.safewatch", *map(str, arguments)],
        cwd=root, env=env, capture_output=True, text=True,
    )  # fmt: skip


def test_the_stages_are_algorithm_1_in_the_commands_a_user_types():
    config = load(FULL)
    stages = algorithm(config)
    assert [s.name for s in stages] == [
        "data", "embedder-all", "influence", "filter", "embedder", "probe", "captions", "scores",
        "traces", "reasoner", "bundle",
    ]  # fmt: skip
    commands = {s.name: shown(s, Path("out")) for s in stages}
    folders = {s.name: str(s.folder(Path("out"))) for s in stages}
    start = "accelerate launch --num_processes 8 -m safelens"
    assert commands["embedder"] == [
        f"{start} train embedder {folders['filter']}/kept.jsonl --epochs 2.0 --batch 1 --accumulate 1 "
        "--lr 0.0001 --rank 64 --bf16 --frame-pixels 200704 --policy default "
        f"--model Qwen/Qwen3-VL-2B-Instruct --out {folders['embedder']}"
    ]
    assert commands["captions"] == [
        f"safelens curate captions {folders['filter']}/kept.jsonl --out "
        f"{folders['captions']}/captioned.jsonl --captioner florence-community/Florence-2-large"
    ]
    assert commands["scores"] == [
        f"safelens curate scores {folders['captions']}/captioned.jsonl --out "
        f"{folders['scores']}/scored.jsonl --model {folders['embedder']}/model --folds 5 "
        "--frame-pixels 200704 --policy default"
    ]
    assert f"--val {folders['data']}/val.jsonl" in commands["influence"][0]
    assert len(commands["data"]) == 2


def test_every_command_takes_its_arguments(settings):
    """Each is parsed by the command that it names: an unknown option would be the first complaint."""
    for path in (FULL, settings(scores={"folds": None, "held_out": 0.2})):
        for stage in algorithm(load(path)):
            for words in stage.settings["commands"]:
                said = CliRunner().invoke(app, [*words, "--help"])
                assert said.exit_code == 0, said.output
                options = [w for w in words if w.startswith("--")]
                assert [o for o in options if o not in said.output] == []


def test_changed_settings_and_inputs_change_only_what_depends_on_them(settings, world):
    names = lambda path: {s.name: s.digest for s in algorithm(load(path))}  # noqa: E731
    one = names(settings())
    probe = names(settings(probe={"steps": 31, "false_refusal_rate": 0.2}))
    assert {n for n in one if one[n] != probe[n]} == {"probe", "bundle"}
    text = world.read_text()
    try:
        world.write_text(text + "\n")
        assert all(one[n] != digest for n, digest in names(settings()).items())
    finally:
        world.write_text(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"processes": 3}, "embedder.batch is 4, no multiple of micro_batch 4 x processes 3"),
        ({"scores": {"folds": 5, "held_out": 0.2}}, "scores: .*give folds or held_out"),
        ({"traces": {"generator": "openai"}}, "traces: .*base_url and model"),
        ({"colour": "red"}, "colour: "),
    ],
)
def test_wrong_settings_are_named(settings, changes, said):
    with pytest.raises(ConfigError, match=said):
        load(settings(**changes))


def test_the_plan_lists_all_problems_at_once(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    broken = settings(
        data={"train": [str(tmp_path / "none.json")]},
        model="nobody/model",
        captioner=str(tmp_path),
        traces={"generator": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"},
    )
    found = look(load(broken))
    said = "\n".join(found.problems)
    assert "none.json: no such file" in said
    assert f"{tmp_path}: not a model's directory: it lacks config.json" in said
    assert "http://127.0.0.1:9/v1/models: no answer" in said
    assert found.unchecked == ["nobody/model: not checked: the hub cannot be reached"]
    disk(str(tmp_path), 1e18, found)
    assert "GB free" in found.problems[-1]


def test_the_plan_counts_records_and_misses_videos(settings, world, tmp_path, chat_server):
    records = list(read_records(world))
    moved = tmp_path / "moved.jsonl"
    write_records(moved, records)
    found = look(load(settings(data={"train": [str(moved)], "videos_root": None})))
    assert f"{len(records)} of {len(records)} videos are not there" in found.problems[0]
    traces = {"generator": "openai", "base_url": f"{chat_server}/good/v1", "model": "m"}
    found = look(load(settings(traces=traces)))
    assert found.problems == []
    strict = look(load(settings(probe={"false_refusal_rate": 0.01})))
    assert "needs 99: raise probe.false_refusal_rate" in strict.problems[0]
    assert found.train == sum(r.split == "train" for r in records)
    assert "does not list m: model not checked" in found.unchecked[0]


def small_sequence(vlm, policy):
    from safelens.train.embedder import Turns
    from safelens.train.sequences import Example

    turns = Turns(vlm, policy)
    frames = np.random.default_rng(0).integers(0, 255, (8, 48, 48, 3), dtype=np.uint8)
    [video] = vlm.encode_videos([frames], [np.arange(8.0)])
    prompt, answer = turns.screening(("violence",))
    closing = len(prompt) - len(turns.question)
    grid = tuple(video.grid[0].tolist())
    n = Lengths(
        len(turns.head), len(video.ids), len(turns.question), closing, len(answer), 0, 0, grid
    )
    return turns, Example(video, ((prompt, answer),)), n


def unseen(text, new, past):
    """What PyTorch's counter adds in each block: scores that causal attention does not see."""
    return 4 * text.num_attention_heads * text.head_dim * (new * new - new * (new + 1) / 2)


def test_influence_costs_what_is_counted(vlm, policy):
    from safelens.curate.gradients import GradientCollector

    turns, example, n = small_sequence(vlm, policy)
    collector = GradientCollector(vlm, turns.layout.head)
    with flop_counter() as counter:
        collector([example]).weights()
    text = vlm.model.config.text_config
    extra = (text.num_hidden_layers - 1) * unseen(text, n.screening, n.head)
    extra += 3.5 * unseen(text, n.screening, n.head)
    found = Model(vlm.model.config).influence_flops(n) + extra
    assert found == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_memory_is_about_what_autograd_keeps(small_vlm, policy):
    from safelens.train.reasoner import add_adapter
    from safelens.train.sequences import teacher_forced
    from safelens.vlm import VisionLanguageModel

    vlm = VisionLanguageModel(*small_vlm(), frame_pixels=PIXELS)
    add_adapter(vlm, 8, 16)
    turns, example, n = small_sequence(vlm, policy)
    weights = {p.untyped_storage().data_ptr() for p in vlm.model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        teacher_forced(vlm, turns.head, [example])
    measured = sum(size for place, size in kept.items() if place not in weights)
    text = vlm.model.config.text_config
    found = (n.head + n.screening) * activation_bytes(text, bf16=False, rank=8)
    assert found + 12 * n.answer * text.vocab_size == pytest.approx(measured, rel=0.25)


def test_a_caption_costs_what_is_counted(captioner_dir):
    from safelens.captioner import Captioner

    eyes = Captioner.load(captioner_dir, max_new_tokens=12)
    frame = np.zeros((1, 128, 128, 3), np.uint8)
    with flop_counter() as counter:
        eyes.caption(frame)
    one = captioner_flops(eyes.model.config, 12)
    assert one == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_the_full_sizes_plan_stands_on_labelled_assumptions(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    made = plan(load(FULL))
    rows = {row.stage: row for row in made.rows}
    assert [s.name for s in made.stages] == list(rows)
    assert rows["embedder"].steps == 2 * 48337 // 8
    assert 2.1e9 < Model(_shape()).weights[0] < 2.2e9
    # twice the weights a token forward, about four times under LoRA, and attention
    a_token = rows["embedder"].flops / rows["embedder"].samples / rows["embedder"].tokens
    assert 3 * 1.7e9 < a_token < 8 * 1.7e9
    assert any("model_shape" in text for text in made.assumed)
    assert len(made.found.unchecked) == 2


def _shape():
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(**load(FULL).assume.model_shape)


@pytest.mark.timeout(900)
def test_the_plan_then_the_chain(settings):
    """The plan, then every stage; a second run does nothing again."""
    path = settings()
    planned = recipe(path, "--plan")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "0 problems" in planned.stdout
    assert "assumption, not a measurement" in planned.stdout
    root = Path(load(path).root)
    assert not root.exists()
    done = recipe(path)
    stages = {s.name: s for s in algorithm(load(path))}
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    bundle = Path(done.stdout.splitlines()[-1])
    shown_bundle = CliRunner().invoke(app, ["bundle", "check", str(bundle)])
    assert shown_bundle.exit_code == 0, shown_bundle.output
    again = recipe(path)
    assert again.stdout.count("done before") == len(stages)


@pytest.mark.timeout(900)
def test_what_follows_the_scores(settings, scored_records, probe_dir, guard_file, vlm_dir):
    """Traces, reasoner and bundle, from records that have captions and scores already."""
    path = settings()
    config = load(path)
    stages = {s.name: s for s in algorithm(config)}
    root = Path(config.root)
    for name in ("data", "embedder-all", "influence", "filter", "captions"):
        _finished(stages[name], root)
    _finished(stages["embedder"], root)
    shutil.copytree(vlm_dir, stages["embedder"].folder(root) / "model")
    _finished(stages["probe"], root)
    shutil.copytree(probe_dir, stages["probe"].folder(root) / "probe")
    shutil.copy(guard_file, stages["probe"].folder(root) / "domain.safetensors")
    _finished(stages["scores"], root)
    records = [
        r.model_copy(update={"video": str(r.video_path(scored_records))})
        for r in read_records(scored_records)
    ]
    write_records(stages["scores"].folder(root) / "scored.jsonl", records)
    done = recipe(path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    bundle = Path(done.stdout.splitlines()[-1])
    assert (bundle / "deliberate" / "adapter_model.safetensors").is_file()
    assert CliRunner().invoke(app, ["bundle", "check", str(bundle)]).exit_code == 0


def _finished(stage, root):
    stage.folder(root).mkdir(parents=True)
    (stage.folder(root) / "stage.json").write_text("{}")
