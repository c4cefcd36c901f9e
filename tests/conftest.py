"""Fixtures that several test files use: small real models with random weights, clips, a bundle."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from safelens import prompts
from safelens.policy import Policy
from safelens.verdict import Caption
from safelens.video import Clip

# A shell starts background jobs with Ctrl-C ignored, and children inherit that; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the console's tests can be asked for."""
    parser.addoption("--screenshots", metavar="FOLDER", help="take the console's pictures anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real videos; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no folder of real videos at {folder}")
    return folder


@pytest.fixture(scope="session")
def policy() -> Policy:
    """The default policy."""
    return Policy.load("default")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory, policy) -> Path:
    """A tokenizer that learned on what the prompts say."""
    from safelens.train.tokenizer import train_tokenizer

    captions = [Caption(time_s=1.5 * i, text="A red person stands in a park.") for i in range(4)]
    texts = [
        prompts.policy_prompt(policy),
        prompts.question(policy) + prompts.screening_suffix(),
        prompts.deliberation_request(policy, captions, dict.fromkeys(policy.labels, 0.125)),
        prompts.deliberation_answer(policy, "A fight.", "Violence.", ["violence", "abuse"]),
    ]
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    train_tokenizer(texts * 5, folder, vocab_size=1000)
    return folder


def loud(model) -> None:
    """Scale random weights up, so that different inputs give visibly different outputs."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8 if "lm_head" in name or "embed_tokens" in name else 10)


@pytest.fixture(scope="session")
def small_vlm(tokenizer_dir):
    """Builds a small Qwen3-VL with random weights, and its processor."""

    def build(seed: int = 1, **sizes):
        import torch

        from safelens.train.tiny_vlm import build_vlm

        torch.set_num_threads(1)
        usual = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
        usual |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        model, processor = build_vlm(tokenizer_dir, seed=seed, **(usual | sizes))
        loud(model)
        return model, processor

    return build


@pytest.fixture(scope="session")
def vlm_dir(small_vlm, tokenizer_dir) -> Path:
    """A small random Qwen3-VL with its processor."""
    model, processor = small_vlm()
    folder = tokenizer_dir.parent / "vlm"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def family_dirs(vlm_dir, tokenizer_dir) -> dict[str, Path]:
    """A small random model of each family with its processor."""
    from small_families import internvl, lfm2_vl, save

    base = tokenizer_dir.parent
    return {
        "qwen3_vl": vlm_dir,
        "internvl": save(internvl, tokenizer_dir, base / "internvl"),
        "lfm2_vl": save(lfm2_vl, tokenizer_dir, base / "lfm2_vl"),
    }


@pytest.fixture(scope="session")
def captioner_dir(tokenizer_dir) -> Path:
    """A small random Florence-2 with its processor."""
    from safelens.train.tiny_models import build_captioner

    folder = tokenizer_dir.parent / "captioner"
    build_captioner(tokenizer_dir, folder, embed_dim=(16, 32, 32), text_dim=32)
    return folder


@pytest.fixture(scope="session")
def adapter_dir(vlm_dir) -> Path:
    """A LoRA adapter, made by peft, whose random weights change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(vlm_dir, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*\.(q_proj|v_proj|o_proj|down_proj)",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(12)
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    folder = vlm_dir.parent / "adapter"
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vlm(vlm_dir):
    """The small model, without adapters; session-wide, so leave it as it was."""
    from safelens.vlm import VisionLanguageModel

    return VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)


@pytest.fixture(scope="session")
def make_clip():
    """Makes a clip of a drawn scene, its frames stretched to the size asked for."""
    return _make_clip


def _make_clip(index: int, frames: int = 4, height: int = 48, width: int = 48, **fields) -> Clip:
    from PIL import Image

    from safelens.safeworld import sample_scene

    scene = sample_scene(3, index)
    times = np.round(np.linspace(0.0, min(scene.duration_s, frames - 1.0), frames), 2)
    pictures = [
        np.asarray(Image.fromarray(scene.render(t, 64)).resize((width, height))) for t in times
    ]
    values = {
        "path": f"clip-{index}.mp4",
        "sha256": f"{index:064x}",
        "frames": np.stack(pictures),
        "timestamps": times,
        "duration_s": scene.duration_s,
        "source_size": (width, height),
        "truncated": False,
    }
    return Clip(**(values | fields))


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    """Six clips of different lengths and shapes."""
    shapes = [(4, 48, 48), (3, 48, 48), (2, 32, 64), (7, 48, 48), (5, 50, 37), (2, 48, 48)]
    return [_make_clip(i, *shape) for i, shape in enumerate(shapes)]


@pytest.fixture(scope="session")
def probe_dir(vlm, clips, policy, tokenizer_dir) -> Path:
    """A probe with random weights whose answers differ from clip to clip."""
    import torch

    from safelens.probe import ProbeConfig, RollingAttentionProbe
    from safelens.screen import LAST_TOKENS, Screener

    prefilled = Screener(vlm, policy).prefill(clips)
    states = torch.cat([prefilled.tail_states(i, LAST_TOKENS) for i in range(len(clips))])
    torch.manual_seed(4)
    probe = RollingAttentionProbe(ProbeConfig(input_dim=vlm.hidden_size, labels=policy.labels))
    probe.mean.copy_(states.mean(0))
    probe.std.copy_(states.std(0))
    folder = tokenizer_dir.parent / "probe"
    probe.save(folder)
    return folder


@pytest.fixture(scope="session")
def guard_file(vlm, clips, policy, tokenizer_dir) -> Path:
    """A domain guard around the clips."""
    from safelens.domain import DomainGuard
    from safelens.domain_features import domain_features
    from safelens.screen import Screener

    prefilled = Screener(vlm, policy).prefill(clips)
    x = np.stack([domain_features(prefilled, i, vlm.patch_shape) for i in range(len(clips))])
    noise = np.random.default_rng(0).normal(scale=x.std(0) + 1e-3, size=(40, x.shape[1]))
    near = np.concatenate([x, x[np.arange(40) % len(x)] + 0.1 * noise])
    guard = DomainGuard.fit(near[:30], near[16:], 0.05, neighbours=2)
    guard.save(tokenizer_dir.parent / "domain.safetensors")
    return tokenizer_dir.parent / "domain.safetensors"


@pytest.fixture(scope="session")
def chat_server():
    """Address of an OpenAI-compatible server, a process of its own; see chat_server.py."""
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "chat_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.stdin.close()
    process.wait(timeout=10)


@pytest.fixture(scope="session")
def scored_records(tmp_path_factory, policy) -> Path:
    """A file of SafeWorld records with true captions and made-up scores, a third of them wrong."""
    import random

    from safelens.data.records import read_records, write_records
    from safelens.safeworld.writer import write_dataset

    folder = tmp_path_factory.mktemp("scored")
    write_dataset(folder, clips=12, seed=4, noise=0.3, with_twins=True)
    records = []
    for record in read_records(folder / "records.jsonl"):
        rng = random.Random(record.id)
        weights = {label: rng.random() for label in policy.labels}
        if rng.random() < 0.67:
            weights[(record.true_labels or ("safe",))[0]] += rng.choice([2, 9])
        total = sum(weights.values())
        scores = {label: round(weight / total, 4) for label, weight in weights.items()}
        records.append(record.model_copy(update={"scores": scores}))
    write_records(folder / "kept.jsonl", records)
    return folder / "kept.jsonl"


BUNDLE = {
    "name": "small",
    "version": "1",
    "knows": "drawings",
    "tau": 0.9,
    "outside_domain": "refuse",
    "clip": {"max_side": 48},
    "screen": {
        "model": "model",
        "frame_pixels": 48 * 48,
        "probe": "probe",
        "domain": "domain.safetensors",
    },
    "deliberate": {
        "captioner": "captioner",
        "adapter": "deliberate",
        "max_new_tokens": 8,
        "max_caption_tokens": 4,
    },
}


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory, vlm_dir, captioner_dir, adapter_dir, probe_dir, guard_file, policy
):
    """Assembles a bundle of random parts; keywords are merged into its settings."""
    import shutil

    from safelens.bundle import write_bundle

    parts = {"model": vlm_dir, "captioner": captioner_dir, "deliberate": adapter_dir}

    def assemble(*, more: dict[str, Path] | None = None, **settings) -> Path:
        folder = tmp_path_factory.mktemp("bundle")
        for name, source in (parts | {"probe": probe_dir} | (more or {})).items():
            shutil.copytree(source, folder / name)
        shutil.copy(guard_file, folder)
        (folder / "policy.yaml").write_text(policy.to_yaml())
        merged = {
            key: value | settings.pop(key, {}) if isinstance(value, dict) else value
            for key, value in BUNDLE.items()
        }
        write_bundle(folder, merged | settings)
        return folder

    return assemble


@pytest.fixture(scope="session")
def bundle_dir(make_bundle) -> Path:
    """A bundle of random parts; leave it as it is."""
    return make_bundle()


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> list[Path]:
    """Six short H.264 files of drawn scenes."""
    folder = tmp_path_factory.mktemp("videos")
    return [_write_video(folder / f"{i}.mp4", i) for i in range(6)]


def _write_video(path: Path, index: int, seconds: int = 3) -> Path:
    import av

    from safelens.safeworld import sample_scene

    scene = sample_scene(3, index)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for k in range(4 * seconds + 1):
            picture = av.VideoFrame.from_ndarray(scene.render(k / 4, 48), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
