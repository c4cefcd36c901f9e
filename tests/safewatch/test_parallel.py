"""The parallel prompt against single masked runs of the library's model, and S1 and S2 on it."""

import dataclasses
import math
import random

import pytest
import torch
from safewatch_prompts import direct, encoded, few_categories

from safelens import prompts
from safelens.branches import Branches
from safelens.deliberate import ADAPTER, Deliberator
from safelens.safewatch.blocks import PolicyBlocks
from safelens.safewatch.parallel import ParallelPrompt
from safelens.screen import Screener
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import states_of

torch.set_num_threads(1)
LAYOUTS = ("policy_first", "video_first")


@pytest.fixture(scope="module")
def few():
    return few_categories()


@pytest.fixture(scope="module")
def loaded(family_dirs):
    """Each family's model in double precision."""
    return {
        name: VisionLanguageModel.load(folder, dtype=torch.float64, frame_pixels=48 * 48)
        for name, folder in family_dirs.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_a_prompt_equals_one_masked_run(loaded, family, few, clips, layout):
    vlm = loaded[family]
    prompt = ParallelPrompt(PolicyBlocks(vlm), few, layout=layout)
    videos = encoded(vlm, clips[:3])
    together = prompt.prefill(videos)
    for row, video in enumerate(videos):
        wanted = direct(vlm, prompt, video, layout)[0]
        torch.testing.assert_close(
            together.tail_states(row, len(wanted)), wanted, atol=1e-6, rtol=1e-6
        )
        alone = prompt.prefill([video])
        torch.testing.assert_close(alone.hidden[0], together.alone(row).hidden[0])
        assert alone.spent[0].flops == pytest.approx(together.spent[row].flops)
        assert together.context(row).length == alone.context(0).length


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_a_thinned_cache_equals_a_mask_over_the_tokens_taken_out(
    loaded, family, few, clips, layout
):
    """Fewer keys for all that follows, positions kept, and blocks that have seen the whole video."""
    vlm = loaded[family]
    prompt = ParallelPrompt(PolicyBlocks(vlm), few, layout=layout, keep=0.3)
    (video,) = encoded(vlm, clips[3:4])
    whole = ParallelPrompt(PolicyBlocks(vlm), few, layout=layout).prefill([video])
    thin = prompt.prefill([video])
    visual = video.ids == vlm.family.visual_token
    gone = int(visual.sum()) - -int(-0.3 * int(visual.sum()) // 1)
    assert whole.context(0).length - thin.context(0).length == gone > 0
    assert thin.context(0).position == whole.context(0).position
    kept = kept_of(vlm, video, thin)
    wanted = direct(vlm, prompt, video, layout, hidden_places=~kept)[0]
    torch.testing.assert_close(thin.tail_states(0, len(wanted)), wanted, atol=1e-6, rtol=1e-6)
    assert (wanted - whole.tail_states(0, len(wanted))).abs().max() > 1e-3
    again = vlm.extend(thin.context(0), vlm.ids("DESCRIPTION:"))
    assert again.isfinite().all()
    all_kept = ParallelPrompt(PolicyBlocks(vlm), few, layout=layout, keep=1.0).prefill([video])
    torch.testing.assert_close(all_kept.hidden, whole.hidden)
    steps = thin.moments(0)
    assert len(steps) == len(video.blocks)
    assert sum(step.length for step in steps) < sum(step.length for step in whole.moments(0))
    assert [len(asked.states) for asked in prompt.ask(steps)] == [thin.tail_length] * len(steps)


@pytest.mark.parametrize("keep", [None, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_a_categorys_answer_sees_no_other_category(loaded, family, few, clips, layout, keep):
    vlm = loaded[family]
    prompt = ParallelPrompt(PolicyBlocks(vlm), few, layout=layout, keep=keep)
    [s1] = Screener(vlm, few, prompt=prompt).screen(clips[3:4])
    (video,) = encoded(vlm, clips[3:4])
    hidden = None if keep is None else ~kept_of(vlm, video, s1.prefilled)
    openings = [prompts.category_opening(c) for c in prompt.policy.categories]
    before = prompts.screening_suffix() + prompt.parts.closing
    parts = Branches.of([vlm.ids(before + opening) for opening in openings]).parts
    true, false = (int(vlm.ids(text)[0]) for text in (prompts.TRUE, prompts.FALSE))
    for number, (category, opening) in enumerate(
        zip(prompt.policy.categories, openings, strict=True)
    ):
        more = {"answer": vlm.ids(before + opening)}
        odds = []
        for alone in ((len(parts[number]), number), None):
            states = direct(vlm, prompt, video, layout, hidden, **more, alone=alone)[0]
            logits = vlm.logits(states[-1])
            odds.append(float(logits[true] - logits[false]))
        found = math.log(s1.scores[category.id] / s1.scores["safe"])
        assert found == pytest.approx(odds[0], abs=1e-4)
        assert abs(odds[0] - odds[1]) > 1e-3


def test_the_same_of_a_model_with_convolutions(loaded, few, clips):
    """By copies of the cache: a category's answer is as if the others were taken out behind the question."""
    vlm = loaded["lfm2_vl"]
    prompt = ParallelPrompt(PolicyBlocks(vlm), few)
    screener = Screener(vlm, few, prompt=prompt)
    [s1] = screener.screen(clips[:1])
    before = prompts.screening_suffix() + prompt.parts.closing
    answers = [vlm.ids(before + prompts.category_opening(c)) for c in prompt.policy.categories]
    branches = Branches.of(answers)
    true, false = (int(vlm.ids(text)[0]) for text in (prompts.TRUE, prompts.FALSE))
    for number, category in enumerate(prompt.policy.categories):
        context = s1.context
        vlm.extend(context, branches.stem)
        past, part = context.length, branches.parts[number]
        seen = torch.ones(len(part), past + len(part), dtype=torch.bool).tril(past)
        for other, (start, end) in enumerate(prompt.spans(past)):
            if other != number:
                seen[:, start:end] = False
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, -1e300)
        inputs = vlm.text_inputs(part[None], context.position)
        with torch.inference_mode():
            states = vlm.run(inputs | {"attention_mask": mask[None, None]}, context.cache)
        logits = vlm.logits(states[0, -1])
        wanted = float(logits[true] - logits[false])
        found = math.log(s1.scores[category.id] / s1.scores["safe"])
        assert found == pytest.approx(wanted, abs=1e-4)


def kept_of(vlm, video, thin):
    """Which tokens of a video a thinned cache still has: by its relevance, or no token of vision."""
    visual = video.ids == vlm.family.visual_token
    count = int((thin.ids(0) == vlm.family.visual_token).sum())
    ranks = thin.relevance[0].argsort(1, descending=True).argsort(1).amin(0)
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], -thin.relevance[0][:, i].max()))
    kept = ~visual
    kept[visual.nonzero()[order[:count], 0]] = True
    return kept


def test_a_convolution_reaches_what_was_there_before_thinning(loaded, few, clips):
    vlm = loaded["lfm2_vl"]
    prompt = ParallelPrompt(PolicyBlocks(vlm), few, keep=0.2)
    (video,) = encoded(vlm, clips[:1])
    thin = prompt.prefill([video])
    whole = vlm.prefill_videos(prompt.head, prompt.led([video]), "")
    context = whole.context(0)
    kept = [states_of(c.cache)[1][0][0, 0] for c in (thin.context(0), context)]
    hidden_places = ~(kept[1][:, None] == kept[0][None]).all(-1).any(1)
    tail = vlm.ids(prompt.parts.tail)
    seen = torch.ones(len(tail), context.length + len(tail), dtype=torch.bool).tril(context.length)
    seen[:, : context.length] &= ~hidden_places
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, -1e300)
    with torch.inference_mode():
        wanted = vlm.run(
            vlm.text_inputs(tail[None], context.position) | {"attention_mask": mask[None, None]},
            context.cache,
        )
    assert hidden_places.sum() > 10
    torch.testing.assert_close(thin.tail_states(0, len(tail)), wanted[0], atol=1e-7, rtol=1e-7)


def captions_of(clip):
    return [Caption(time_s=float(t), text=f"A frame at {t}.") for t in clip.timestamps]


@pytest.fixture(scope="module")
def adapted(vlm_dir, adapter_dir):
    found = VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)
    found.load_adapter(adapter_dir, ADAPTER)
    return found


@pytest.mark.parametrize(("layout", "keep"), [("policy_first", None), ("video_first", 0.2)])
def test_s1_and_s2_give_the_same_for_any_order(adapted, policy, clips, layout, keep):
    """S2 with its adapter and in company, on S1's cache; each policy is one of the tenants of one model."""
    blocks, rng, found = PolicyBlocks(adapted), random.Random(3), []
    for _ in range(3):
        prompt = ParallelPrompt(blocks, policy, layout=layout, keep=keep)
        s1, s2 = (
            Screener(adapted, policy, prompt=prompt),
            Deliberator(adapted, policy, max_new_tokens=8, prompt=prompt),
        )
        under_way, answers = s2.decoding(), {}
        screened = s1.screen(clips[:3])
        for row, one in enumerate(screened):
            program = s2.program(captions_of(clips[row]), one.scores, one.spent)
            under_way.admit(row, one.context, program)
        while len(under_way):
            answers |= {ended.key: ended.result for ended in under_way.step()}
        alone = s2.deliberate(screened[1].context, captions_of(clips[1]), screened[1].scores)
        assert alone.text == answers[1].text
        assert alone.scores == pytest.approx(answers[1].scores, abs=1e-4)
        again = s2.deliberate(s2.read_video(clips[1]), captions_of(clips[1]), screened[1].scores)
        assert again.text == alone.text
        evidence = s1.evidence(screened[0], clips[0], "violence")
        found.append((screened, answers, [e.model_dump() for e in evidence]))
        shuffled = rng.sample(policy.categories, len(policy.categories))
        policy = dataclasses.replace(policy, categories=tuple(shuffled))
    assert blocks.read == (6 if layout == "policy_first" else 0)
    for screened, answers, evidence in found[1:]:
        for row in range(3):
            assert screened[row].scores == pytest.approx(found[0][0][row].scores, abs=1e-5)
            assert answers[row].text == found[0][1][row].text
            assert answers[row].scores == pytest.approx(found[0][1][row].scores, abs=1e-5)
        assert len(evidence) == len(found[0][2]) > 0
    assert found[0][0][0].scores != found[0][0][1].scores
