"""Training through the shared prefix, for the families that read images: as Qwen3-VL in test_sequences."""

import json

import pytest
import torch
from torch.nn import functional as F

from safelens.train.embedder import LabelledClip, Turns, train_embedder
from safelens.train.loop import LoopConfig
from safelens.train.reasoner import AugmentedClip, merge_adapter, train_reasoner
from safelens.train.sequences import Example, teacher_forced
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel

WEIGHTS = {
    "internvl": (
        "model.language_model.layers.0.self_attn.k_proj.weight",
        "model.vision_tower.embeddings.patch_embeddings.projection.weight",
    ),
    "lfm2_vl": (
        "model.language_model.layers.0.conv.conv.weight",
        "model.language_model.layers.0.conv.in_proj.weight",
        "model.language_model.layers.1.self_attn.k_proj.weight",
        "model.vision_tower.embeddings.patch_embedding.weight",
    ),
}


@pytest.fixture(params=WEIGHTS)
def family(request):
    return request.param


@pytest.fixture
def fresh(family_dirs, family):
    """A model that a test may train."""
    return VisionLanguageModel.load(family_dirs[family], frame_pixels=48 * 48)


def labelled(vlm, clips, labels):
    videos = vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])
    return [
        LabelledClip(
            video,
            labels[i],
            tuple(Caption(time_s=float(t), text=f"A park {i}.") for t in clip.timestamps),
            "A red person strikes a blue person.",
            "A person is struck.",
        )
        for i, (clip, video) in enumerate(zip(clips, videos, strict=True))
    ]


def test_shared_head_gives_the_losses_and_gradients_of_whole_sequences(
    fresh, family, policy, clips
):
    vlm = fresh
    turns = Turns(vlm, policy)
    data = labelled(vlm, clips[1:4], [("abuse",), (), ("sexual", "violence")])
    batch = [
        Example(c.video, (turns.screening(c.labels), turns.caption(c.captions[1], first=False)))
        for c in data
    ]
    scored = teacher_forced(vlm, turns.head, batch)
    sum(scored.losses).backward()
    weights = dict(vlm.model.named_parameters())
    shared = [weights[n].grad.clone() for n in WEIGHTS[family]]
    vlm.model.zero_grad()

    # the reference: each row whole, from nothing, through the library's own positions
    picked: list[list[torch.Tensor]] = [[], []]
    for example in batch:
        tail = torch.cat([part for turn in example.turns for part in turn])
        ids = torch.cat([turns.head, example.video.ids, tail])[None]
        logits = vlm.model(input_ids=ids, **vlm.family.visual([example.video])).logits[0]
        at = len(turns.head) + len(example.video.ids)
        for turn, (prompt, answer) in enumerate(example.turns):
            at += len(prompt)
            rows = logits[at - 1 : at - 1 + len(answer)]
            picked[turn].append(F.cross_entropy(rows, answer, reduction="none"))
            at += len(answer)
    losses = [torch.cat(p).mean() for p in picked]
    sum(losses).backward()
    for ours, theirs in zip(scored.losses, losses, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, grad in zip(WEIGHTS[family], shared, strict=True):
        assert grad.abs().max() > 0
        torch.testing.assert_close(
            grad, weights[name].grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max())
        )


def test_a_second_turn_begins_no_second_chat(fresh, policy, clips):
    turns = Turns(fresh, policy)
    [clip] = labelled(fresh, clips[:1], [()])
    prompt, _ = turns.caption(clip.captions[0], first=False)
    text = fresh.tokenizer.decode(prompt)
    assert text.startswith("\n<|im_start|>user\n")
    assert "<|startoftext|>" not in text


def test_embedder_learns(fresh, policy, clips, tmp_path):
    data = labelled(fresh, clips[1:3], [("abuse",), ()])
    config = LoopConfig(steps=5, warmup=1, lr=1e-3, muon_lr=None)
    tasks = ("screen", "see", "read", "deliberate", "screen")
    train_embedder(
        fresh,
        policy,
        lambda number: data,
        tmp_path,
        config,
        task_of=lambda number: tasks[number],
        texts_at=lambda number: [(" RED BLUE", " RED BLUE"), (" A", " A")],
    )
    rows = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[4]["guardrail"] < rows[0]["guardrail"]


def test_reasoner_trains_only_the_adapter_and_what_it_saves_is_what_runs(
    fresh, family, family_dirs, policy, clips, tmp_path
):
    data = labelled(fresh, clips[1:3], [("abuse",), ()])
    batch = [AugmentedClip(c, c.captions, dict.fromkeys(policy.labels, 1 / 7)) for c in data]
    before = {n: p.clone() for n, p in fresh.model.named_parameters()}
    config = LoopConfig(steps=3, warmup=1, lr=3e-3, muon_lr=None)
    train_reasoner(fresh, policy, lambda number: batch, tmp_path, config, rank=4, alpha=8)
    rows = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    after = {
        n.replace(".base_layer", ""): p
        for n, p in fresh.model.named_parameters()
        if "lora" not in n
    }
    assert all(torch.equal(before[n], after[n]) for n in before)

    loaded = VisionLanguageModel.load(family_dirs[family], frame_pixels=48 * 48)
    loaded.load_adapter(tmp_path / "adapter", "deliberate")
    ids = loaded.ids("GUARDRAIL: some text")
    plain = loaded.extend(loaded.prefill_text("A policy."), ids)
    adapted = loaded.extend(loaded.prefill_text("A policy."), ids, adapter="deliberate")
    assert (adapted - plain).abs().max() > 1e-2
    fresh.model.enable_adapters()
    merge_adapter(fresh)
    context = loaded.prefill_text("A policy.")
    merged = fresh.extend(context, ids)
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
