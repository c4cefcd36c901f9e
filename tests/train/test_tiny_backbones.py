"""The small models of three families: of the sizes that are said, and fit to screen and to learn."""

import json

import pytest
import torch

from safelens.screen import Screener
from safelens.train.embedder import LabelledClip, train_embedder
from safelens.train.loop import LoopConfig
from safelens.train.tiny_internvl import build_internvl
from safelens.train.tiny_lfm2_vl import build_lfm2_vl
from safelens.train.tiny_vlm import build_vlm
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel

# As many tokens as the recipe's models read.
VOCABULARY = {"vocab_size": 2048}
RECIPES = {"hidden_size": 128, "intermediate_size": 384}
RECIPES |= {"num_attention_heads": 4, "num_key_value_heads": 4}
FAMILIES = {
    "qwen3_vl": (lambda folder: build_vlm(folder, seed=3, **RECIPES, **VOCABULARY), 2.5e6),
    "internvl": (lambda folder: build_internvl(folder, seed=3, text=VOCABULARY), 1.5e6),
    "lfm2_vl": (lambda folder: build_lfm2_vl(folder, seed=3, text=VOCABULARY), 1.0e6),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_screens_and_trains(family, tokenizer_dir, policy, clips, tmp_path):
    build, size = FAMILIES[family]
    model, processor = build(tokenizer_dir)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.1)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    vlm = VisionLanguageModel.load(tmp_path / "model", frame_pixels=48 * 48)
    assert vlm.model.config.model_type == family
    [screened] = Screener(vlm, policy).screen(clips[2:3])
    assert sum(screened.scores.values()) == pytest.approx(1)

    some = clips[2:4]
    videos = vlm.encode_videos([c.frames for c in some], [c.timestamps for c in some])
    captions = [tuple(Caption(time_s=float(t), text="A park.") for t in c.timestamps) for c in some]
    data = [
        LabelledClip(video, ("abuse",), told, "A red person strikes a blue person.", "Struck.")
        for video, told in zip(videos, captions, strict=True)
    ]
    before = {name: p.detach().clone() for name, p in vlm.model.named_parameters()}
    config = LoopConfig(steps=1, warmup=1, lr=1e-3, muon_lr=0.02)
    train_embedder(vlm, policy, lambda number: data, tmp_path / "trained", config)
    [row] = (tmp_path / "trained" / "log.jsonl").read_text().splitlines()
    assert json.loads(row)["guardrail"] > 0
    moved = [not torch.equal(before[n], p) for n, p in vlm.model.named_parameters()]
    assert sum(moved) > len(moved) / 2
