"""Preference tuning: the paper's equation, likelihoods of whole sequences, and what an adapter learns."""

import json
import math

import pytest
import torch
from safewatch_prompts import encoded, few_categories, masked

from safelens.assembly import Encoding
from safelens.safewatch.blocks import PolicyBlocks
from safelens.safewatch.parallel import ParallelPrompt
from safelens.train.embedder import LabelledClip, Turns
from safelens.train.loop import LoopConfig
from safelens.train.preferences import (
    Preference,
    PreferenceBatch,
    answer_log_likelihoods,
    dpo_loss,
    train_preferences,
)
from safelens.train.reasoner import AugmentedClip
from safelens.train.sequences import continued
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)
PARALLEL = Encoding("parallel")


def test_the_loss_is_the_papers_equation():
    """By hand: sigmoid of beta times the difference of two log ratios; its gradient is that of equation 7."""
    chosen = torch.tensor([-3.0, -8.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-5.0, -2.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-4.0, -7.0]), torch.tensor([-4.5, -6.0])
    loss, ordered = dpo_loss(chosen, rejected, *reference, beta=0.5)
    margins = [(-3 + 4) - (-5 + 4.5), (-8 + 7) - (-2 + 6)]
    sigmoid = [1 / (1 + math.exp(-0.5 * m)) for m in margins]
    assert loss.item() == pytest.approx(-sum(map(math.log, sigmoid)) / 2)
    assert ordered.item() == 0.5
    loss.backward()
    wanted = [-0.5 * (1 - s) / 2 for s in sigmoid]
    assert chosen.grad.tolist() == pytest.approx(wanted)
    assert rejected.grad.tolist() == pytest.approx([-w for w in wanted])


def test_likelihoods_behind_a_cache_are_those_of_one_masked_run(family_dirs, clips):
    vlm = VisionLanguageModel.load(
        family_dirs["qwen3_vl"], dtype=torch.float64, frame_pixels=48 * 48
    )
    few = few_categories()
    turns = Turns(vlm, few, encoding=PARALLEL)
    prompt = ParallelPrompt(PolicyBlocks(vlm), few)
    videos = encoded(vlm, clips[:2])
    pairs = [turns.screening(("arms",)), turns.screening(())]
    tails = [torch.cat([p[len(turns.question) :], a]) for p, a in pairs]
    spans = [
        (len(p) - len(turns.question), len(p) - len(turns.question) + len(a)) for p, a in pairs
    ]
    prefilled = prompt.prefill(videos)
    with torch.no_grad():
        hidden, ids = continued(vlm, [prefilled.context(row) for row in range(2)], tails)
        found = answer_log_likelihoods(vlm, hidden, ids, spans)
        for row, (video, tail) in enumerate(zip(videos, tails, strict=True)):
            states = masked(vlm, prompt, video, "policy_first", answer=tail)[0]
            answer = pairs[row][1]
            logits = vlm.model.lm_head(states[-len(answer) - 1 : -1]).log_softmax(-1)
            wanted = logits.gather(1, answer[:, None]).sum()
            assert found[row].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("keep", [None, 0.3])
def test_an_adapter_learns_to_prefer_and_the_model_stays(
    family_dirs, policy, clips, tmp_path, keep
):
    vlm = VisionLanguageModel.load(family_dirs["qwen3_vl"], frame_pixels=48 * 48)
    before = {n: p.clone() for n, p in vlm.model.named_parameters()}
    encoding = Encoding("parallel", keep)
    prompt = encoding.prompt(vlm, policy, "policy_first")
    turns = Turns(vlm, policy, encoding=encoding)
    scores = dict.fromkeys(policy.labels, 1 / 7)
    pairs = []
    for clip, video in zip(clips[:2], encoded(vlm, clips[:2]), strict=True):
        captions = tuple(Caption(time_s=float(t), text="A park.") for t in clip.timestamps)
        good = LabelledClip(video, ("abuse",), captions, "A person strikes.", "A blow is struck.")
        bad = LabelledClip(
            video, (), captions, "A person strikes.", "All is well, as ever and always."
        )
        pairs.append(Preference(AugmentedClip(good, captions, scores), bad))
    batch = PreferenceBatch(turns, prompt, pairs)
    config = LoopConfig(steps=8, warmup=1, lr=3e-3, muon_lr=None, checkpoint_every=4)
    train_preferences(vlm, lambda number: batch, tmp_path, config, rank=4, alpha=8, beta=0.5)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(
        math.log(2), abs=1e-3
    )  # a fresh adapter is the reference
    assert rows[-1]["loss"] < 0.5
    assert rows[-1]["ordered"] == 1
    after = {
        n.replace(".base_layer", ""): p for n, p in vlm.model.named_parameters() if "lora" not in n
    }
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
