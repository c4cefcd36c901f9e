"""Relevance against the model's own attention weights and by hand; which tokens stay."""

import math

import pytest
import torch
from safewatch_prompts import direct, few_categories
from slow_model import norm, rotate

from safelens.safewatch.blocks import PolicyBlocks
from safelens.safewatch.parallel import ParallelPrompt
from safelens.safewatch.relevance import most_relevant
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vlm(vlm_dir):
    return VisionLanguageModel.load(vlm_dir, dtype=torch.float64, frame_pixels=48 * 48)


def encoded_one(vlm, clip):
    return vlm.encode_videos([clip.frames], [clip.timestamps])[0]


@pytest.mark.parametrize("layer", [0, 2])
def test_behind_a_video_relevance_is_the_models_own_attention(vlm, clips, layer):
    """The weights that the library gives of one masked run, among the video's tokens alone."""
    video, few = encoded_one(vlm, clips[0]), few_categories()
    prompt = ParallelPrompt(PolicyBlocks(vlm, layer=layer), few, layout="video_first", keep=0.5)
    found = prompt.prefill([video]).relevance[0]
    vlm.model.set_attn_implementation("eager")
    try:
        _, out, block, place, which = direct(
            vlm, prompt, video, "video_first", output_attentions=True
        )
    finally:
        vlm.model.set_attn_implementation("sdpa")
    visual = place[video.ids == vlm.family.visual_token]
    for row, number in enumerate(which[block].unique()):
        weights = out.attentions[layer][0][:, which == number][:, :, visual]
        wanted = (weights / weights.sum(-1, keepdim=True)).mean(dim=(0, 1))
        torch.testing.assert_close(found[row].double(), wanted, atol=1e-6, rtol=1e-5)
    assert found.sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_before_a_video_the_policy_looks_from_behind_it(family_dirs, clips):
    """Written out on an InternVL, whose rotary positions are plain numbers."""
    vlm = VisionLanguageModel.load(
        family_dirs["internvl"], dtype=torch.float64, frame_pixels=48 * 48
    )
    video, few = encoded_one(vlm, clips[0]), few_categories()
    blocks = PolicyBlocks(vlm, layer=0)
    prompt = ParallelPrompt(blocks, few, keep=0.5)
    found = prompt.prefill([video]).relevance[0]

    language = vlm.model.model.language_model
    layer, attention = language.layers[0], language.layers[0].self_attn
    size, theta = attention.head_dim, float(language.config.rope_parameters["rope_theta"])
    [led] = prompt.led([video])
    seen = vlm.prefill_videos(prompt.head, [led], "")
    start = prompt.head.position + led.lead
    visual = (video.ids == vlm.family.visual_token).nonzero()[:, 0].tolist()
    tower = seen.vision[0].double()
    with torch.no_grad():
        keys = [
            rotate(
                attention.k_proj(norm(layer.input_layernorm, x)).view(-1, size), start + i, theta
            )
            for i, x in zip(visual, tower, strict=True)
        ]
        from safelens import prompts

        for row, category in enumerate(prompt.policy.categories):
            wanted = torch.zeros(len(visual), dtype=torch.float64)
            ids = vlm.ids(prompts.category_block(category)).tolist()
            for k, token in enumerate(ids):
                x = norm(layer.input_layernorm, language.embed_tokens.weight[token])
                q = rotate(attention.q_proj(x).view(-1, size), start + len(video.ids) + k, theta)
                for head in range(len(q)):
                    own = head * len(keys[0]) // len(q)
                    scores = torch.stack([q[head] @ key[own] for key in keys]) / math.sqrt(size)
                    wanted += scores.softmax(0) / len(q) / len(ids)
            torch.testing.assert_close(found[row].double(), wanted, atol=1e-6, rtol=1e-5)


def test_each_category_has_an_equal_say():
    found = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04, 0.0], [0.0, 0.1, 0.0, 0.2, 0.3, 0.4]])

    def kept(keep):
        return most_relevant(found, keep).nonzero()[:, 0].tolist()

    assert kept(1 / 6) == [0]  # the more relevant of both firsts
    assert kept(2 / 6) == [0, 5]
    assert kept(0.5) == [0, 1, 5]  # of the seconds, 0.3 and 0.3, the earlier one
    assert kept(4 / 6) == [0, 1, 4, 5]
    assert kept(1.0) == [0, 1, 2, 3, 4, 5]
    assert kept(0.01) == [0]
    assert most_relevant(torch.rand(3, 1960), 0.1).sum() == 196
    assert most_relevant(found.flip(0), 0.5).tolist() == most_relevant(found, 0.5).tolist()


def test_a_layer_that_does_not_attend_is_refused(family_dirs):
    vlm = VisionLanguageModel.load(family_dirs["lfm2_vl"])
    with pytest.raises(ValueError, match=r"layer 0 does not attend; expected one of \[1\]"):
        PolicyBlocks(vlm, layer=0)
