"""Training on categories read alone and thinned videos, against single masked runs of the library's model."""

import dataclasses
import json

import pytest
import torch
from safewatch_prompts import encoded, few_categories, masked
from torch.nn import functional as F

from safelens.assembly import Encoding, EncodingError
from safelens.safewatch.blocks import PolicyBlocks, TrainedBlocks, compose
from safelens.safewatch.parallel import ParallelPrompt
from safelens.train.embedder import LabelledClip, Turns, share_at, train_embedder
from safelens.train.loop import LoopConfig
from safelens.train.reasoner import AugmentedClip, train_reasoner, train_separate_reasoner
from safelens.train.sequences import Example, teacher_forced
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)
PARALLEL = Encoding("parallel")


@pytest.fixture(scope="module")
def few():
    return few_categories()


def fresh(family_dirs, family="qwen3_vl", dtype=torch.float64):
    """A model that a test may train, in double precision where only a mistake is to be a difference."""
    return VisionLanguageModel.load(family_dirs[family], dtype=dtype, frame_pixels=48 * 48)


def gradients(vlm):
    return {n: p.grad.clone() for n, p in vlm.model.named_parameters() if p.grad is not None}


def kept_of(vlm, prompt, video):
    """Which tokens of a video stay, as the prompt's own relevance has it."""
    thin = ParallelPrompt(
        PolicyBlocks(vlm, layer=prompt.blocks.layer),
        prompt.policy,
        layout="policy_first" if prompt._before else "video_first",
        keep=prompt.keep,
    ).prefill([video])
    visual = video.ids == vlm.family.visual_token
    count = int((thin.ids(0) == vlm.family.visual_token).sum())
    found = thin.relevance[0]
    ranks = found.argsort(1, descending=True).argsort(1).amin(0)
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], -found[:, i].max()))
    kept = ~visual
    kept[visual.nonzero()[order[:count], 0]] = True
    return kept


@pytest.mark.parametrize("keep", [None, 0.3])
@pytest.mark.parametrize("layout", ["policy_first", "video_first"])
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_losses_and_all_gradients_are_those_of_masked_runs(
    family_dirs, family, layout, keep, few, clips
):
    """Every weight's, the vision tower's and those that made the blocks included."""
    vlm = fresh(family_dirs, family)
    turns = Turns(vlm, few, layout, PARALLEL)
    # two videos of one length and one of another
    videos = encoded(vlm, [clips[0], clips[0], clips[3]])
    batch = [
        Example(video, (turns.screening(labels),))
        for video, labels in zip(videos, [("arms",), (), ("abuse", "fraud")], strict=True)
    ]
    prompt = turns.opening(keep)
    scored = teacher_forced(vlm, prompt, batch)
    scored.losses[0].backward()
    ours = gradients(vlm)
    vlm.model.zero_grad()

    picked = []
    for example in batch:
        (asked, answer), gone = example.turns[0], None
        if keep is not None:
            gone = ~kept_of(vlm, prompt, example.video)
            assert gone.any()
        behind = torch.cat([asked, answer])[len(turns.question) :]
        states = masked(vlm, prompt, example.video, layout, gone, behind)[0]
        logits = vlm.model.lm_head(states[-len(answer) - 1 : -1])
        picked.append(F.cross_entropy(logits, answer, reduction="none"))
    loss = torch.cat(picked).mean()
    loss.backward()
    theirs = gradients(vlm)
    # the library's rotary positions are float32, whatever the weights are
    torch.testing.assert_close(scored.losses[0].double(), loss, rtol=1e-5, atol=1e-6)
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-4 * scale + 1e-9)


def test_a_convolution_learns_through_blocks(family_dirs, few, clips):
    """LFM2: against finite differences, as no mask keeps a convolution from its neighbours."""
    vlm = fresh(family_dirs, "lfm2_vl")
    turns = Turns(vlm, few, encoding=PARALLEL)
    batch = [Example(encoded(vlm, clips[:1])[0], (turns.screening(("arms",)),))]
    weight = dict(vlm.model.named_parameters())["model.language_model.layers.0.conv.in_proj.weight"]

    def loss():
        return teacher_forced(vlm, turns.opening(0.4), batch).losses[0]

    loss().backward()
    step = torch.zeros_like(weight)
    step[:3] = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)) * 1e-3
    slope = float((weight.grad * step).sum())
    with torch.no_grad():
        weight += step
        above = float(loss())
        weight -= 2 * step
        below = float(loss())
    assert slope == pytest.approx((above - below) / 2, rel=2e-2)


def test_what_is_trained_is_what_is_read_in_use(family_dirs, few, clips):
    """The question's states of a training pass and of S1's, on blocks that are kept."""
    vlm = fresh(family_dirs)
    turns = Turns(vlm, few, encoding=PARALLEL)
    videos = encoded(vlm, clips[:2])
    for keep in (None, 0.2):
        prompt = ParallelPrompt(PolicyBlocks(vlm), few, keep=keep)
        used = prompt.prefill(videos)
        batch = [Example(video, (turns.screening(()),)) for video in videos]
        with torch.no_grad():
            scored = teacher_forced(vlm, turns.opening(keep), batch)
        for row, [(answer, _)] in enumerate(scored.answers):
            start = answer - len(turns.question) - len(turns.closing)
            states = scored.hidden[row, start : start + len(turns.question)]
            torch.testing.assert_close(states, used.tail_states(row, len(turns.question)))


def test_the_order_of_categories_changes_neither_loss_nor_answer(family_dirs, few, clips):
    vlm = fresh(family_dirs)
    video = encoded(vlm, clips[:1])[0]
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        shuffled = dataclasses.replace(few, categories=tuple(few.categories[i] for i in order))
        turns = Turns(vlm, shuffled, encoding=PARALLEL)
        pair = turns.screening(("fraud",))
        scored = teacher_forced(vlm, turns.opening(0.3), [Example(video, (pair,))])
        found.append((vlm.text(pair[1].tolist()), scored.losses[0].item()))
    assert found[0] == found[1]


def test_blocks_in_training_follow_the_weights(family_dirs, few):
    vlm = fresh(family_dirs)
    trained, kept = TrainedBlocks(vlm), PolicyBlocks(vlm)
    texts = ["<policy>\nA fight.\n</policy>\n", "Arms\n"]

    def states(blocks):
        trunk, found = blocks.of("You check videos.", texts)
        return found, compose(trunk, found).fork()

    (_, one), (blocks, other) = states(kept), states(trained)
    assert other.position == one.position
    for ours, theirs in zip(other.states, one.states, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.detach(), b)
    assert other.states[0][0].requires_grad
    assert not blocks[0].queries.requires_grad  # which tokens stay is a choice
    with torch.no_grad():
        vlm.model.model.language_model.layers[0].self_attn.k_proj.weight.mul_(2)
    (_, same), (_, moved) = states(kept), states(trained)
    assert not torch.allclose(moved.states[1][0], other.states[1][0])
    torch.testing.assert_close(same.states[1][0], one.states[1][0])


def test_shares_are_spread_over_orders_of_few_and_many():
    shares = [share_at(number, 0.1, seed=3) for number in range(2000)]
    assert all(0.1 <= share <= 1 for share in shares)
    assert sum(share < 0.1**0.5 for share in shares) / 2000 == pytest.approx(0.5, abs=0.05)
    assert shares == [share_at(number, 0.1, seed=3) for number in range(2000)]
    assert shares != [share_at(number, 0.1, seed=4) for number in range(2000)]


def test_a_policy_read_as_one_text_is_not_pruned(family_dirs, few):
    vlm = fresh(family_dirs)
    turns = Turns(vlm, few)
    assert torch.equal(turns.opening(), turns.head)
    with pytest.raises(EncodingError, match="needs policy_encoding: parallel"):
        turns.opening(0.5)
    with pytest.raises(ValueError, match="opening"):
        _ = Turns(vlm, few, encoding=PARALLEL).head


def labelled(vlm, clips, labels):
    return [
        LabelledClip(
            video,
            labels[i],
            tuple(Caption(time_s=float(t), text=f"A park {i}.") for t in clips[i].timestamps),
            "A red person strikes a blue person.",
            "A person is struck.",
        )
        for i, video in enumerate(encoded(vlm, clips))
    ]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_an_embedder_learns_at_random_shares(family_dirs, policy, clips, tmp_path):
    vlm = fresh(family_dirs, dtype=torch.float32)
    data = labelled(vlm, clips[:2], [("abuse",), ()])
    train_embedder(
        vlm,
        policy,
        lambda number: data,
        tmp_path,
        LoopConfig(steps=6, warmup=1, lr=2e-3, muon_lr=None, checkpoint_every=4),
        encoding=Encoding("parallel", keep=0.2),
        random_keep=True,
    )
    rows = rows_of(tmp_path)
    assert "captions" not in rows[0]  # what a frame showed may be gone
    assert rows[5]["guardrail"] < rows[0]["guardrail"]
    assert rows[5]["classes"] < rows[0]["classes"]


@pytest.mark.parametrize("train", [train_reasoner, train_separate_reasoner])
def test_a_reasoner_learns_on_thinned_videos(family_dirs, policy, clips, tmp_path, train):
    """As an adapter on blocks that the frozen model has read once, or as a model of its own."""
    vlm = fresh(family_dirs, dtype=torch.float32)
    data = labelled(vlm, [clips[0], clips[0]], [("abuse",), ("abuse",)])
    batch = [AugmentedClip(c, c.captions, dict.fromkeys(policy.labels, 1 / 7)) for c in data]
    before = {n: p.clone() for n, p in vlm.model.named_parameters()}
    config = LoopConfig(steps=5, warmup=1, lr=3e-3, muon_lr=None)
    more = {"rank": 4, "alpha": 8} if train is train_reasoner else {}
    train(
        vlm,
        policy,
        lambda number: batch,
        tmp_path,
        config,
        encoding=Encoding("parallel", keep=0.3),
        random_keep=True,
        **more,
    )
    rows = rows_of(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    changed = [
        name.replace(".base_layer", "")
        for name, p in vlm.model.named_parameters()
        if "lora" not in name and not torch.equal(before[name.replace(".base_layer", "")], p)
    ]
    assert bool(changed) == (train is train_separate_reasoner)
