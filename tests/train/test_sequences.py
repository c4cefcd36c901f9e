import json

import pytest
import torch
from torch.nn import functional as F

from safelens import prompts
from safelens.train.embedder import LabelledClip, Turns, class_target, train_embedder
from safelens.train.loop import LoopConfig
from safelens.train.reasoner import AugmentedClip, train_reasoner
from safelens.train.sequences import Example, teacher_forced
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel


@pytest.fixture
def fresh(vlm_dir):
    """A model that a test may train."""
    return VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)


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


def test_shared_head_gives_the_losses_and_gradients_of_whole_sequences(fresh, policy, clips):
    vlm = fresh
    turns = Turns(vlm, policy)
    data = labelled(vlm, clips[:3], [("abuse",), (), ("sexual", "violence")])
    batch = [
        Example(c.video, (turns.screening(c.labels), turns.caption(c.captions[1], first=False)))
        for c in data
    ]
    scored = teacher_forced(vlm, turns.head, batch)
    sum(scored.losses).backward()
    names = [
        "model.language_model.layers.0.self_attn.k_proj.weight",
        "model.visual.patch_embed.proj.weight",
    ]
    weights = dict(vlm.model.named_parameters())
    shared = [weights[n].grad.clone() for n in names]
    vlm.model.zero_grad()

    # the reference: each row whole, from nothing, through the library's own positions
    picked: list[list[torch.Tensor]] = [[], []]
    for example in batch:
        tail = torch.cat([part for turn in example.turns for part in turn])
        ids = torch.cat([turns.head, example.video.ids, tail])[None]
        out = vlm.model(
            input_ids=ids,
            mm_token_type_ids=(ids == vlm.model.config.video_token_id).int() * 2,
            pixel_values_videos=example.video.pixels,
            video_grid_thw=example.video.grid,
        )
        at = len(turns.head) + len(example.video.ids)
        for turn, (prompt, answer) in enumerate(example.turns):
            at += len(prompt)
            logits = out.logits[0, at - 1 : at - 1 + len(answer)]
            picked[turn].append(F.cross_entropy(logits, answer, reduction="none"))
            at += len(answer)
    losses = [torch.cat(p).mean() for p in picked]
    sum(losses).backward()
    for ours, theirs in zip(scored.losses, losses, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    for name, grad in zip(names, shared, strict=True):
        torch.testing.assert_close(
            grad, weights[name].grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max())
        )


def test_class_target(policy):
    assert class_target(policy, ()).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert class_target(policy, ("abuse", "illegal")).tolist() == [0, 0.5, 0, 0, 0.5, 0, 0]


def test_embedder_learns_and_resumes_through_all_its_tasks(fresh, policy, clips, tmp_path):
    data = labelled(fresh, clips[:2], [("abuse",), ()])
    config = LoopConfig(steps=10, warmup=1, lr=1e-3, muon_lr=None, checkpoint_every=5)
    tasks = ("see",) * 4 + ("deliberate", "screen", "read", "describe", "read", "screen")
    train_embedder(
        fresh,
        policy,
        lambda s: data,
        tmp_path,
        config,
        task_of=lambda number: tasks[number],
        texts_at=lambda number: [(" RED BLUE", " RED BLUE"), (" A", " A")],
    )
    rows = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "captions" in rows[0]
    assert "guardrail" not in rows[0]
    assert "deliberation" in rows[4]
    assert "guardrail" in rows[5]
    assert rows[3]["captions"] < rows[0]["captions"]
    assert rows[9]["guardrail"] < rows[5]["guardrail"]
    assert "description" in rows[7]
    assert rows[8]["reading"] < rows[6]["reading"]


def test_captions_in_the_prompt_stand_between_question_and_closing(fresh, policy, clips, tmp_path):
    turns = Turns(fresh, policy)
    [clip] = labelled(fresh, clips[:1], [("abuse",)])
    bare, answer = turns.screening(clip.labels)
    told, same = turns.screening(clip.labels, clip.captions)
    assert torch.equal(answer, same)
    texts = [fresh.tokenizer.decode(ids) for ids in (bare, told)]
    section = prompts.frame_captions(clip.captions)
    at = len(fresh.tokenizer.decode(turns.question))
    assert texts[1] == texts[0][:at] + section + texts[0][at:]

    config = LoopConfig(steps=1, warmup=1, lr=0.0, muon_lr=None)
    losses = {}
    for read in (False, True):
        out = tmp_path / str(read)
        train_embedder(fresh, policy, lambda s: [clip], out, config, read_captions=read)
        losses[read] = json.loads((out / "log.jsonl").read_text())["guardrail"]
    expected = teacher_forced(fresh, turns.head, [Example(clip.video, ((told, answer),))])
    assert losses[True] == pytest.approx(expected.losses[0].item(), abs=1e-3)
    assert losses[True] != losses[False]


def test_reading_is_scored_as_each_text_alone_would_be(fresh, policy, clips, tmp_path):
    texts = [(" RED BLUE GREEN", " RED BLUE"), (" A", " A LONG ANSWER TO A SHORT PROMPT")]
    turns = Turns(fresh, policy)
    picked = []
    for prompt, answer in texts:
        head = torch.cat([turns.head_without_policy, fresh.ids(prompt + turns.layout.closing)])
        wanted = fresh.ids(answer)
        with torch.no_grad():
            logits = fresh.model(input_ids=torch.cat([head, wanted])[None]).logits[0]
        picked.append(F.cross_entropy(logits[len(head) - 1 : -1], wanted, reduction="none"))
    config = LoopConfig(steps=1, warmup=1, lr=0.0, muon_lr=None)
    train_embedder(
        fresh,
        policy,
        lambda s: [],
        tmp_path,
        config,
        task_of=lambda number: "read",
        texts_at=lambda number: texts,
    )
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["reading"] == pytest.approx(torch.cat(picked).mean().item(), abs=1e-3)


def test_reasoner_trains_only_the_adapter_and_what_it_saves_is_what_runs(
    fresh, vlm_dir, policy, clips, tmp_path
):
    same = [clips[0], clips[0]]
    data = labelled(fresh, same, [("abuse",), ("abuse",)])
    batch = [AugmentedClip(c, c.captions, dict.fromkeys(policy.labels, 1 / 7)) for c in data]
    before = {n: p.clone() for n, p in fresh.model.named_parameters()}
    config = LoopConfig(steps=6, warmup=1, lr=3e-3, muon_lr=None, checkpoint_every=6)
    train_reasoner(fresh, policy, lambda s: batch, tmp_path, config, rank=4, alpha=8)
    rows = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    after = {
        n.replace(".base_layer", ""): p
        for n, p in fresh.model.named_parameters()
        if "lora" not in n
    }
    assert all(torch.equal(before[n], after[n]) for n in before)

    loaded = VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)
    loaded.load_adapter(tmp_path / "adapter", "deliberate")
    ids = loaded.ids("GUARDRAIL: some text")
    plain = loaded.extend(loaded.prefill_text("A policy."), ids)
    adapted = loaded.extend(loaded.prefill_text("A policy."), ids, adapter="deliberate")
    context = fresh.prefill_text("A policy.")
    fresh.model.enable_adapters()
    position = (
        torch.arange(context.position, context.position + len(ids)).view(1, 1, -1).expand(3, 1, -1)
    )
    with torch.no_grad():
        trained = fresh.model.model(
            input_ids=ids[None],
            position_ids=position,
            past_key_values=context.cache,
            use_cache=True,
        ).last_hidden_state
    torch.testing.assert_close(adapted, trained, rtol=1e-4, atol=1e-4)
    assert (adapted - plain).abs().max() > 1e-2


def test_reasoner_goes_on_from_an_adapter(fresh, vlm_dir, policy, clips, tmp_path):
    from safetensors.torch import load_file

    data = labelled(fresh, [clips[0], clips[0]], [("abuse",), ("abuse",)])
    batch = [AugmentedClip(c, c.captions, dict.fromkeys(policy.labels, 1 / 7)) for c in data]
    config = LoopConfig(steps=4, warmup=1, lr=3e-3, muon_lr=None, checkpoint_every=4)
    first, second = tmp_path / "first", tmp_path / "second"
    train_reasoner(fresh, policy, lambda s: batch, first, config, rank=4, alpha=8)
    again = VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)
    before = {n: p.clone() for n, p in again.model.named_parameters()}
    train_reasoner(again, policy, lambda s: batch, second, config, start=first / "adapter")
    rows = [
        [json.loads(x)["loss"] for x in (out / "log.jsonl").read_text().splitlines()]
        for out in (first, second)
    ]
    assert rows[1][0] < rows[0][-1] < rows[0][0]  # where the first ended, not where it began
    assert rows[1][-1] < rows[1][0]
    for name, weight in again.model.named_parameters():
        if "lora" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer", "")])
    one, other = (load_file(out / "adapter/adapter_model.safetensors") for out in (first, second))
    assert one.keys() == other.keys()
    assert {len(w) for n, w in other.items() if "lora_A" in n} == {4}
    assert all(not torch.equal(one[n], other[n]) for n in one)
