"""Every family against the library's own model: one run over the whole sequence, without a cache."""

import re

import numpy as np
import pytest
import torch
from attention_flops import flop_counter
from transformers import DynamicCache

from safelens.bundle_parts import model_config
from safelens.domain_features import domain_features, domain_width
from safelens.reading import layout_of
from safelens.screen import Screener
from safelens.train.reasoner import add_adapter
from safelens.vlm import Context, ModelLoadError, VisionLanguageModel
from safelens.vlm_cost import head_flops
from safelens.vlm_decoding import alone, reply
from safelens.vlm_inputs import EncodedVideo

torch.set_num_threads(1)
FAMILIES = ("qwen3_vl", "internvl", "lfm2_vl")
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
REST = "GUARDRAIL: no category is violated.\nThe video shows a park"


@pytest.fixture(scope="module")
def loaded(family_dirs):
    """Each family's model; leave them as they are."""
    return {
        name: VisionLanguageModel.load(folder, frame_pixels=48 * 48)
        for name, folder in family_dirs.items()
    }


@pytest.fixture(params=FAMILIES)
def model(loaded, request):
    return loaded[request.param]


def encoded(vlm, clips):
    return vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])


@torch.no_grad()
def whole_run(vlm, ids, video, cache=None):
    """Hidden states (L, D) of a sequence with a video; the library finds the positions itself."""
    inputs = vlm.family.visual([video]) | {"input_ids": ids[None]}
    if vlm.family.medium == "video":
        vlm.model.model.rope_deltas = None
        is_video = ids == vlm.model.config.video_token_id
        inputs["mm_token_type_ids"] = is_video.int()[None] * 2
    use = {"past_key_values": cache, "use_cache": cache is not None}
    return vlm.model.model(**inputs, **use).last_hidden_state[0]


def test_batched_forked_and_continued_runs_equal_one_run(model, clips):
    """Rows of different lengths and shapes on one head, in one batch and alone."""
    vlm, few = model, clips[1:5]
    head = vlm.prefill_text("A policy. " * 5)
    before = head.length
    videos = encoded(vlm, few)
    together = vlm.prefill_videos(head, videos, " What is seen?")
    assert len(set(together.lengths)) > 2
    head_ids, tail, rest = vlm.ids("A policy. " * 5), vlm.ids(" What is seen?"), vlm.ids(REST)
    for row, video in enumerate(videos):
        ids = torch.cat([head_ids, video.ids, tail, rest])
        hidden = whole_run(vlm, ids, video)
        alone = vlm.prefill_videos(head, [video], " What is seen?")
        length = together.lengths[row]
        for one, at in ((together, row), (alone, 0)):
            context = one.context(at)
            assert context.length == before + length
            context = context.fork(2)
            parts = [vlm.extend(context, part) for part in (rest[:1], rest[1:3], rest[3:])]
            for copy in torch.cat(parts, dim=1):
                found = torch.cat([one.hidden[at, :length], copy])
                torch.testing.assert_close(found, hidden[before:], **CLOSE)
        torch.testing.assert_close(together.vision[row], alone.vision[0], **CLOSE)
        assert together.spent[row] == alone.spent[0]
    assert head.length == before
    assert vlm.logits(hidden).std() > 0.5  # the comparison is not one of zeros


@pytest.mark.parametrize("name", ["internvl", "lfm2_vl"])
def test_image_families_read_what_the_librarys_processor_would_give(loaded, make_clip, name):
    vlm, clip = loaded[name], make_clip(3, 3, 48, 80)
    [video] = encoded(vlm, [clip])
    processor = vlm.processor
    frames = vlm.family.fit(clip.frames, vlm.frame_pixels)
    text = "".join(f"<{t:.1f} seconds>{processor.image_token}" for t in clip.timestamps)
    whole = {"crop_to_patches": False} if name == "internvl" else {"do_image_splitting": False}
    theirs = processor(text=[text], images=[list(frames)], return_tensors="pt", **whole)
    assert video.ids.tolist() == theirs["input_ids"][0].tolist()
    ours = vlm.family.visual([video])
    n = ours["pixel_values"].shape[1]
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"][:, :n], **CLOSE)
    if name == "lfm2_vl":
        assert torch.equal(ours["spatial_shapes"], theirs["spatial_shapes"])
        assert int(theirs["pixel_attention_mask"].sum()) == int(ours["pixel_attention_mask"].sum())


def test_a_chat_is_cut_where_the_video_stands(model, policy):
    parts = layout_of(model, policy, "policy_first")
    user = {
        "role": "user",
        "content": [{"type": model.family.medium}, {"type": "text", "text": "X"}],
    }
    messages = [{"role": "system", "content": "S"}, user]
    text = model.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    cut = model.layout("X", system="S")
    assert cut.head + model.family.placeholder + cut.tail + cut.closing == text
    assert policy.categories[0].name in parts.head


def test_moments_are_one_step_at_its_true_place(model, clips):
    """Against a run up to that step by the library alone, a mask hiding the other steps from the question."""
    vlm, clip = model, clips[1]
    [video] = encoded(vlm, [clip])
    head, tail = vlm.ids("A policy."), vlm.ids(" What is seen?")
    prefilled = vlm.prefill_videos(vlm.prefill_text("A policy."), [video], " What is seen?")
    together = Context.stack(prefilled.moments(0))
    assert together.rows == len(video.blocks) == int(video.grid[0, 0])
    hidden = vlm.extend(together, tail)
    patches = int(video.grid[0, 1:].prod())
    for step, (a, b) in enumerate(video.blocks):
        grid = video.grid.clone()
        grid[0, 0] = step + 1
        begun = EncodedVideo(video.ids[:b], video.pixels[: (step + 1) * patches], grid, ())
        cache = DynamicCache(config=vlm.model.config)
        ids = torch.cat([head, begun.ids])
        whole_run(vlm, ids, begun, cache)
        seen = torch.ones(len(tail), len(ids) + len(tail), dtype=torch.bool)
        seen[:, len(head) : len(ids)] = False
        seen[:, len(head) + a : len(head) + b] = True
        seen[:, len(ids) :] = torch.ones(len(tail), len(tail)).tril().bool()
        inputs = vlm.text_inputs(tail[None], prefilled.context(0).position - len(tail))
        mask = seen[None, None]
        with torch.no_grad():
            wanted = vlm.run(inputs | {"attention_mask": mask}, cache)
        torch.testing.assert_close(hidden[step : step + 1], wanted, **CLOSE)


@pytest.fixture(params=FAMILIES)
def adapted(family_dirs, request, tmp_path_factory):
    """A model with a saved and loaded adapter whose random weights change every answer."""
    vlm = VisionLanguageModel.load(family_dirs[request.param], frame_pixels=48 * 48)
    add_adapter(vlm, 4, 8)
    torch.manual_seed(12)
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    vlm.model.save_pretrained(folder)
    fresh = VisionLanguageModel.load(family_dirs[request.param], frame_pixels=48 * 48)
    fresh.load_adapter(folder, "deliberate")
    return fresh


def test_an_adapter_continues_the_cache_made_without_it(adapted, clips):
    """Against one run in which the adapter's update is zero for all that comes before."""
    vlm, rest = adapted, adapted.ids(REST)
    [video] = encoded(vlm, [clips[3]])
    head, tail = vlm.ids("A policy."), vlm.ids(" Look:")
    ids = torch.cat([head, video.ids, tail, rest])
    mask = (torch.arange(len(ids)) >= len(ids) - len(rest))[None, :, None]
    layers = [m for n, m in vlm.model.named_modules() if n.endswith("lora_B.deliberate")]
    linear = [
        m for m in vlm.model.model.language_model.layers.modules() if isinstance(m, torch.nn.Linear)
    ]
    assert len(linear) == 3 * len(layers)  # each layer, and its two matrices
    hooks = [m.register_forward_hook(lambda _m, _i, out: out * mask) for m in layers]
    vlm.model.enable_adapters()
    wanted = whole_run(vlm, ids, video)
    vlm.model.disable_adapters()
    for hook in hooks:
        hook.remove()
    prefilled = vlm.prefill_videos(vlm.prefill_text("A policy."), [video], " Look:")
    context = prefilled.context(0)
    parts = [vlm.extend(context, part, adapter="deliberate") for part in (rest[:2], rest[2:])]
    found = torch.cat([prefilled.hidden, *parts], dim=1)[0]
    torch.testing.assert_close(found, wanted[len(head) :], atol=5e-5, rtol=1e-5)
    plain = vlm.extend(prefilled.context(0), rest)[0]
    assert (plain - found[-len(rest) :]).abs().max() > 0.1


def test_screening_evidence_and_domain_features(model, policy, clips):
    screener = Screener(model, policy)
    for s1, clip in zip(screener.screen(clips[:2]), clips[:2], strict=True):
        assert sum(s1.scores.values()) == pytest.approx(1, abs=1e-5)
        assert screener.evidence(s1, clip, policy.categories[0].id)
        assert len(s1.steps) == int(encoded(model, [clip])[0].grid[0, 0])
        features = domain_features(s1.prefilled, s1.row, model.patch_shape)
        assert len(features) == domain_width(model.hidden_size)
        assert np.isfinite(features).all()
        change = features[2 * model.hidden_size + 6 :][:6]
        assert change.max() > 0


def test_a_still_video_does_not_change(loaded, make_clip):
    clip = make_clip(2, 3)
    still = np.repeat(clip.frames[:1], 3, axis=0)
    for vlm in (loaded["internvl"], loaded["lfm2_vl"]):
        for frames in (still, still[:1]):
            videos = vlm.encode_videos([frames], [clip.timestamps[: len(frames)]])
            prefilled = vlm.prefill_videos(vlm.prefill_text("Look:"), videos, " What?")
            features = domain_features(prefilled, 0, vlm.patch_shape)
            assert not features[2 * vlm.hidden_size + 6 :][:6].any()


def counted(run):
    with flop_counter() as counter:
        found = run()
    return counter.get_total_flops(), found


@pytest.mark.parametrize("name", ["internvl", "lfm2_vl"])
def test_passes_cost_what_is_counted(loaded, clips, name):
    vlm = loaded[name]
    text = vlm.family.text_config
    attention = (getattr(text, "layer_types", None) or []).count("full_attention") or 3
    queries = attention * 4 * text.hidden_size

    def unseen(new, past):
        """What the counter adds: scores of tokens that causal attention does not see."""
        return queries * (new * (past + new) - new * past - new * (new + 1) / 2)

    total, head = counted(lambda: vlm.prefill_text("word " * 100))
    assert head.spent.flops + unseen(head.length, 0) == pytest.approx(total, rel=0.02)
    videos = encoded(vlm, clips[:1])
    total, prefilled = counted(lambda: vlm.prefill_videos(head, videos, " What is seen?"))
    extra = unseen(prefilled.lengths[0], head.length)
    assert prefilled.spent[0].flops + extra == pytest.approx(total, rel=0.02)
    context = prefilled.context(0)
    spent = context.spent.flops
    program = reply(vlm, context.spent, vlm.ids(REST).tolist(), max_new_tokens=4)
    total, _ = counted(lambda: alone(vlm, context, program))
    assert context.spent.flops - spent == pytest.approx(total, rel=0.03)
    assert head_flops(text, 1) < total


@pytest.mark.parametrize("name", ["internvl", "lfm2_vl"])
def test_bfloat16_runs_and_is_close(loaded, family_dirs, clips, name):
    half = VisionLanguageModel.load(family_dirs[name], dtype=torch.bfloat16, frame_pixels=48 * 48)
    found = []
    for vlm in (half, loaded[name]):
        head = vlm.prefill_text("A policy.")
        prefilled = vlm.prefill_videos(head, encoded(vlm, clips[2:4]), " What is seen?")
        found.append((prefilled.hidden[0], vlm.extend(prefilled.context(0), vlm.ids(REST))[0]))
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == torch.bfloat16
        n = min(len(ours), len(exact))
        assert torch.cosine_similarity(ours[:n].float(), exact[:n], dim=-1).mean() > 0.9


def test_models_of_other_families_are_refused_by_name(loaded, tmp_path):
    """Linear attention keeps a state that cannot be cut; a LLaVA is of no family here."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    other = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=small | {"model_type": "llama", "vocab_size": 32, "num_key_value_heads": 2},
            vision_config=small | {"model_type": "clip_vision_model", "image_size": 28},
        )
    )
    processor = loaded["qwen3_vl"].processor
    refused = r"model type 'llava' is of no family that can be run; use a Qwen3-VL, an InternVL"
    with pytest.raises(ModelLoadError, match=f"^LlavaForConditionalGeneration: {refused}"):
        VisionLanguageModel(other, processor)
    other.config.save_pretrained(tmp_path)  # refused before weights are looked for
    with pytest.raises(ModelLoadError, match=refused):
        VisionLanguageModel.load(tmp_path)
    for name in ("model.safetensors", "tokenizer.json", "processor_config.json"):
        (tmp_path / name).touch()
    _, _, problem = model_config(str(tmp_path), "vision-language model")
    assert re.search(refused, problem)
    hybrid = loaded["lfm2_vl"].model
    types = hybrid.config.text_config.layer_types
    hybrid.config.text_config.layer_types = ["linear_attention", *types[1:]]
    try:
        with pytest.raises(ModelLoadError, match="layers of type linear_attention"):
            VisionLanguageModel(hybrid, loaded["lfm2_vl"].processor)
    finally:
        hybrid.config.text_config.layer_types = types
