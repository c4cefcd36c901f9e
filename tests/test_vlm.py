from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from safelens import prompts
from safelens.families.qwen3_vl import Qwen3Vl
from safelens.reading import layout_of
from safelens.vlm import ModelLoadError, VisionLanguageModel
from safelens.vlm_cache import Context
from safelens.vlm_decoding import alone, reply
from safelens.vlm_inputs import fit_frames, step_times

torch.set_num_threads(1)
CONTINUATION = "GUARDRAIL: no category is violated.\nThe video shows a park"
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def by_library(vlm, clip, text):
    """Inputs of a whole chat, made by the library's own processor alone.

    Some releases of the library (5.23) put the blocks of frames inside the placeholder's own
    vision_start and vision_end, which Qwen's processor replaces; given the bare token, all agree.
    """
    text = text.replace(Qwen3Vl.placeholder, "<|video_pad|>")
    frames = fit_frames(clip.frames, vlm.frame_pixels, vlm.family.factor)
    metadata = {
        "total_num_frames": 100_000,
        "fps": 1000.0,
        "frames_indices": [round(float(t) * 1000) for t in clip.timestamps],
    }
    return vlm.processor(
        text=[text],
        videos=[frames],
        video_metadata=[metadata],
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
    )


def chat(vlm, policy, layout):
    """The chat as the library's template renders it, up to the assistant's turn."""
    question, rules = prompts.question(policy), prompts.policy_prompt(policy)
    video, user = {"type": "video"}, {"role": "user"}
    if layout == "policy_first":
        messages = [
            {"role": "system", "content": rules},
            user | {"content": [video, {"type": "text", "text": question}]},
        ]
    else:
        text = {"type": "text", "text": f"{rules}\n\n{question}"}
        messages = [user | {"content": [video, text]}]
    return vlm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.no_grad()
def uncached(vlm, inputs):
    """One run over the whole sequence, without cache: ids, hidden states, logits."""
    vlm.model.model.rope_deltas = None
    hidden = vlm.model.model(**inputs, use_cache=False).last_hidden_state
    logits = vlm.model(**inputs, use_cache=False).logits
    return inputs["input_ids"][0], hidden[0], logits[0].float()


@pytest.mark.parametrize("layout", ["policy_first", "video_first"])
@pytest.mark.parametrize("shape", [(4, 48, 48), (3, 50, 37), (2, 30, 200), (5, 100, 44)])
def test_cached_run_equals_one_uncached_run_of_the_library(vlm, policy, make_clip, layout, shape):
    clip = make_clip(1, *shape)
    parts = layout_of(vlm, policy, layout)
    inputs = by_library(vlm, clip, chat(vlm, policy, layout) + CONTINUATION)
    ids, hidden, logits = uncached(vlm, inputs)

    head = vlm.prefill_text(parts.head)
    (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
    prefilled = vlm.prefill_videos(head, [video], parts.tail)
    rest = vlm.ids(parts.closing + CONTINUATION)
    context = prefilled.context(0)
    vlm.model.model.rope_deltas = torch.tensor([[777]])  # stale, as after another caller
    continued = vlm.extend(context, rest)

    ours = torch.cat([vlm.ids(parts.head), video.ids, vlm.ids(parts.tail), rest])
    assert ours.tolist() == ids.tolist()
    assert torch.equal(video.pixels, inputs["pixel_values_videos"])
    assert torch.equal(video.grid, inputs["video_grid_thw"])
    ours_hidden = torch.cat([prefilled.hidden[0], continued[0]])
    torch.testing.assert_close(ours_hidden, hidden[head.length :], **CLOSE)
    torch.testing.assert_close(vlm.logits(ours_hidden), logits[head.length :], **CLOSE)
    assert context.length == len(ids)
    assert logits.std() > 0.5  # the comparison is not one of zeros


def test_timestamps_and_pixels_are_those_of_the_library(vlm, make_clip):
    for times in ([0.0, 0.0], [0.0, 1.25, 2.5], [0.04, 0.96, 1.98, 3.0, 59.99], [0.0, 3599.5]):
        clip = make_clip(2, len(times), 40, 60, timestamps=np.array(times))
        (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
        inputs = by_library(vlm, clip, Qwen3Vl.placeholder)
        assert video.ids.tolist() == inputs["input_ids"][0].tolist()
        assert torch.equal(video.pixels, inputs["pixel_values_videos"])
        text = vlm.tokenizer.decode(video.ids)
        stamps = [f"<{t:.1f} seconds><|vision_start|>" for t in step_times(times, 2)]
        assert [text.count(stamp) for stamp in dict.fromkeys(stamps)] == [
            stamps.count(stamp) for stamp in dict.fromkeys(stamps)
        ]
        for a, b in video.blocks:
            block = video.ids[a:b].tolist()
            assert vlm.tokenizer.decode(block[:1] + block[-1:]) == "<|vision_start|><|vision_end|>"
            assert set(block[1:-1]) == {vlm.model.config.video_token_id}


def test_one_frame_and_wrong_timestamps(vlm, make_clip):
    one = make_clip(0, 2)
    (video,) = vlm.encode_videos([one.frames[:1]], [one.timestamps[:1]])
    (pair,) = vlm.encode_videos([one.frames[[0, 0]]], [one.timestamps[[0, 0]]])
    assert torch.equal(video.ids, pair.ids)
    assert torch.equal(video.pixels, pair.pixels)
    with pytest.raises(ValueError, match="5 timestamps for a video of 1 temporal steps"):
        vlm.encode_videos([one.frames], [np.arange(5.0)])


def test_read_only_frames_are_taken_without_a_warning(vlm, recwarn):
    frames = np.zeros((2, 48, 48, 3), np.uint8)
    frames.flags.writeable = False
    vlm.encode_videos([frames], [np.arange(2.0)])
    assert not [w for w in recwarn if "writable" in str(w.message)]
    assert fit_frames(frames[:, :, :, ::-1], 10, 16).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("size", "pixels", "wanted"),
    [
        ((48, 48), 48 * 48, (48, 48)),
        ((480, 640), 96 * 96, (80, 112)),
        ((1080, 20), 448 * 448, (1088, 16)),
        ((10, 10), 48 * 48, (16, 16)),
    ],
)
def test_fit_frames_keeps_the_aspect(size, pixels, wanted):
    frames = np.full((2, *size, 3), 200, np.uint8)
    fitted = fit_frames(frames, pixels, 16)
    assert tuple(fitted.shape[-2:]) == wanted
    assert (fitted == 200).all()


def prefill(vlm, policy, clips, head=None):
    parts = layout_of(vlm, policy, "policy_first")
    head = head or vlm.prefill_text(parts.head)
    videos = vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])
    return vlm.prefill_videos(head, videos, parts.tail)


def test_batches_equal_single_runs_and_videos_do_not_contaminate(vlm, policy, clips):
    parts = layout_of(vlm, policy, "policy_first")
    head = vlm.prefill_text(parts.head)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in head.cache.layers]
    together = prefill(vlm, policy, clips, head)
    assert len(set(together.lengths)) > 2
    rest = vlm.ids(parts.closing + CONTINUATION)
    for row, clip in enumerate(clips):
        vlm.model.model.rope_deltas = torch.tensor([[50 * row - 99]])
        alone = prefill(vlm, policy, [clip], head)
        n = alone.lengths[0]
        assert n == together.lengths[row]
        torch.testing.assert_close(together.hidden[row, :n], alone.hidden[0, :n], **CLOSE)
        assert together.spent[row] == alone.spent[0]
        one, other = together.context(row), alone.context(0)
        assert (one.length, one.position) == (other.length, other.position)
        torch.testing.assert_close(vlm.extend(one, rest), vlm.extend(other, rest), **CLOSE)
    again = prefill(vlm, policy, [clips[0]], head)
    alone = prefill(vlm, policy, [clips[0]])
    assert torch.equal(again.hidden, alone.hidden)
    for (keys, values), layer in zip(before, head.cache.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


def test_moments_are_one_step_at_its_true_place(vlm, policy, clips):
    """Against a run in which a mask hides the other steps from the question."""
    clip = clips[0]
    prefilled = prefill(vlm, policy, [clip])
    parts = layout_of(vlm, policy, "policy_first")
    (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
    tail = vlm.ids(parts.tail)
    moments = prefilled.moments(0)
    assert len(moments) == len(video.blocks) == 2
    for moment, (a, b) in zip(moments, video.blocks, strict=True):
        hidden = vlm.extend(moment, tail)
        head = prefilled.head_length
        whole = prefilled.context(0)
        whole.crop(len(tail))
        seen = torch.ones(len(tail), whole.length + len(tail), dtype=torch.bool)
        seen[:, head : whole.length] = False
        seen[:, head + a : head + b] = True
        seen[:, whole.length :] = torch.ones(len(tail), len(tail)).tril().bool()
        with torch.no_grad():
            reference = vlm.model.model(
                input_ids=tail[None],
                position_ids=(whole.position + torch.arange(len(tail))).expand(3, 1, -1),
                attention_mask=seen[None, None],
                past_key_values=whole.cache,
                use_cache=True,
            ).last_hidden_state
        torch.testing.assert_close(hidden, reference, **CLOSE)
    together = Context.stack(prefilled.moments(0))
    both = vlm.extend(together, tail)
    torch.testing.assert_close(both[-1:], hidden, **CLOSE)


# -- decoding -----------------------------------------------------------------------------------


def test_choice(vlm):
    logits = torch.randn(3, len(vlm.tokenizer))
    one, other = vlm.ids(" true")[0], vlm.ids(" false")[0]
    p = vlm.choice(logits, (" true", " false"))
    torch.testing.assert_close(p, torch.sigmoid(logits[:, one] - logits[:, other]))
    with pytest.raises(ValueError, match="begin with the same token"):
        vlm.choice(logits, (" true", " true!"))


# -- adapters -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(vlm_dir, adapter_dir):
    model = VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)
    model.load_adapter(adapter_dir, "deliberate")
    return model


@torch.no_grad()
def masked_adapter_run(vlm, inputs, prefix):
    """One uncached run in which the adapter's update is zero for the first ``prefix`` tokens."""
    mask = (torch.arange(inputs["input_ids"].shape[1]) >= prefix)[None, :, None]
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: out * mask)
        for name, module in vlm.model.named_modules()
        if name.endswith("lora_B.deliberate")
    ]
    assert hooks
    vlm.model.enable_adapters()
    vlm.model.model.rope_deltas = None
    try:
        return vlm.model.model(**inputs, use_cache=False).last_hidden_state[0]
    finally:
        vlm.model.disable_adapters()
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("layout", ["policy_first", "video_first"])
def test_adapter_continues_the_cache_made_without_it(vlm, adapted, policy, clips, layout):
    clip, rest = clips[3], CONTINUATION
    parts = layout_of(adapted, policy, layout)
    inputs = by_library(adapted, clip, chat(adapted, policy, layout) + rest)
    ids = adapted.ids(parts.closing + rest)
    prefix = inputs["input_ids"].shape[1] - len(ids)
    reference = masked_adapter_run(adapted, inputs, prefix)

    head = adapted.prefill_text(parts.head)
    (video,) = adapted.encode_videos([clip.frames], [clip.timestamps])
    prefilled = adapted.prefill_videos(head, [video], parts.tail)
    with_adapter = adapted.extend(prefilled.context(0), ids, adapter="deliberate")[0]
    torch.testing.assert_close(with_adapter, reference[prefix:], **CLOSE)
    torch.testing.assert_close(prefilled.hidden[0], reference[head.length : prefix], **CLOSE)

    # S1 after S2 is S1 before S2, and that of a model that never had an adapter.
    after = adapted.prefill_videos(head, [video], parts.tail)
    assert torch.equal(after.hidden, prefilled.hidden)
    plain = vlm.prefill_videos(vlm.prefill_text(parts.head), [video], parts.tail)
    torch.testing.assert_close(after.hidden, plain.hidden, **CLOSE)
    without = vlm.extend(plain.context(0), ids)[0]
    assert (without - with_adapter).abs().max() > 0.1


def test_adapter_is_off_again_after_an_exception(adapted):
    ids = adapted.ids("A park.")
    clean = adapted.extend(adapted.prefill_text("Look:"), ids)
    with pytest.raises(IndexError):
        adapted.extend(adapted.prefill_text("Look:"), torch.tensor([10**6]), adapter="deliberate")
    assert torch.equal(adapted.extend(adapted.prefill_text("Look:"), ids), clean)
    changed = adapted.extend(adapted.prefill_text("Look:"), ids, adapter="deliberate")
    assert not torch.allclose(changed, clean, atol=0.1)
    with pytest.raises(ValueError, match="'other' is not loaded; loaded: deliberate"):
        adapted.extend(adapted.prefill_text("Look:"), ids, adapter="other")


# -- threads, types, loading --------------------------------------------------------------------


def test_threads_that_share_a_model_get_what_serial_runs_get(adapted, policy, clips):
    parts = layout_of(adapted, policy, "policy_first")
    head = adapted.prefill_text(parts.head)

    def work(clip):
        prefilled = prefill(adapted, policy, [clip], head)
        context = prefilled.context(0)
        opening = adapted.ids(parts.closing + "DESCRIPTION:")
        hidden = adapted.extend(context, opening, adapter="deliberate")
        program = reply(adapted, context.spent, opening.tolist(), max_new_tokens=6)
        text = alone(adapted, prefilled.context(0), program, adapter="deliberate")
        return prefilled.hidden, hidden, text

    serial = [work(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(work, clips))
    for one, other in zip(serial, parallel, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[2] == other[2]


def test_bfloat16_runs_and_is_close(vlm_dir, adapter_dir, vlm, policy, clips):
    half = VisionLanguageModel.load(vlm_dir, dtype=torch.bfloat16, frame_pixels=48 * 48)
    half.load_adapter(adapter_dir, "deliberate")
    prefilled = prefill(half, policy, clips[:2])
    assert prefilled.hidden.dtype == torch.bfloat16
    exact = prefill(vlm, policy, clips[:2]).hidden
    cosine = torch.cosine_similarity(prefilled.hidden[0].float(), exact[0], dim=-1)
    assert cosine.mean() > 0.9
    hidden = half.extend(prefilled.context(0), half.ids("A park."), adapter="deliberate")
    assert half.logits(hidden).dtype == torch.float32


def test_loading_is_quiet_and_says_what_is_wrong(vlm_dir, captioner_dir, tmp_path, capfd):
    VisionLanguageModel.load(vlm_dir)
    assert "Loading weights" not in capfd.readouterr().err
    with pytest.raises(ModelLoadError, match="nowhere: it is no local directory"):
        VisionLanguageModel.load(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match="incomplete, damaged"):
        VisionLanguageModel.load(tmp_path)
    with pytest.raises(ModelLoadError, match=r"Florence2|florence2"):
        VisionLanguageModel.load(captioner_dir)
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(ModelLoadError, match="'bart' has no vision tower"):
        VisionLanguageModel.load(tmp_path)


def test_an_unreachable_hub_is_named_with_the_alternatives(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="cannot load nobody/none") as caught:
        VisionLanguageModel.load("nobody/none")
    assert "--bundle tiny" in str(caught.value)
    assert "Offline" in str(caught.value)


def test_adapters_that_do_not_fit_are_refused(vlm_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = VisionLanguageModel.load(vlm_dir)
    with pytest.raises(ModelLoadError, match="expected an adapter saved by peft"):
        model.load_adapter(tmp_path, "deliberate")
    base = AutoModelForImageTextToText.from_pretrained(vlm_dir)
    config = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "head")
    with pytest.raises(ModelLoadError, match="lm_head"):
        model.load_adapter(tmp_path / "head", "deliberate")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 2}, {"num_hidden_layers": 4}])
def test_an_adapter_of_another_model_is_refused(small_vlm, adapter_dir, change):
    model = VisionLanguageModel(*small_vlm(**change))
    with pytest.raises(ModelLoadError, match="made for another model"):
        model.load_adapter(adapter_dir, "deliberate")
    with pytest.raises(ValueError, match="is not loaded"):
        model.extend(model.prefill_text("Look:"), model.ids("A"), adapter="deliberate")


def test_a_model_that_lacks_weights_is_refused(small_vlm, tmp_path):
    model, processor = small_vlm()
    weights = model.state_dict()
    del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        VisionLanguageModel.load(tmp_path)
