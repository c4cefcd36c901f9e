from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from safelens.captioner import Captioner, CaptionerError, clean_caption
from safelens.train.tiny_models import build_captioner
from safelens.train.tokenizer import train_tokenizer
from safelens.vlm_cost import Spent

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    base = tmp_path_factory.mktemp("captioner")
    train_tokenizer(["A red person stands in a park. " * 3], base / "tokenizer", vocab_size=400)
    model, processor = build_captioner(base / "tokenizer", embed_dim=(16, 32, 32), text_dim=32)
    with torch.no_grad():  # so that random weights say different things of different frames
        for name, parameter in model.named_parameters():
            if "decoder" in name and "encoder_attn" in name and parameter.ndim > 1:
                parameter.mul_(12)
    # Special and unfinished byte tokens would be cleaned away and leave nothing to compare.
    vocabulary = len(processor.tokenizer)
    model.generation_config.suppress_tokens = [
        i for i in range(vocabulary) if not processor.tokenizer.decode([i]).strip().isalpha()
    ]
    Captioner(model, processor).save(base / "model")
    return base / "model"


@pytest.fixture(scope="module")
def captioner(directory):
    return Captioner.load(directory, device="cpu", max_new_tokens=12)


@pytest.fixture(scope="module")
def frames():
    tints = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    return tints.repeat(48, axis=1).repeat(64, axis=2)


def by_hand(captioner, frame):
    """Greedy decoding of one frame without cache, batch or `generate`."""
    model, processor = captioner.model, captioner.processor
    inputs = processor(images=[frame], text=[captioner.task], return_tensors="pt")
    ids = [model.config.text_config.decoder_start_token_id]
    with torch.no_grad():
        for _ in range(captioner.max_new_tokens):
            logits = model(**inputs, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            logits[model.generation_config.suppress_tokens] = -torch.inf
            ids.append(int(logits.argmax()))
    return clean_caption(processor.tokenizer.decode(ids, skip_special_tokens=True))


def test_equals_greedy_decoding_by_hand(captioner, frames):
    captions = captioner.caption(frames)
    assert captions == [by_hand(captioner, frame) for frame in frames]
    assert len(set(captions)) > 1
    assert all(captions)


def test_batches_do_not_mix_frames(captioner, frames):
    one_by_one = captioner.caption(frames, batch_size=1)
    assert captioner.caption(frames, batch_size=2) == one_by_one
    assert captioner.caption(frames[::-1], batch_size=5) == one_by_one[::-1]
    assert captioner.caption(frames[:0]) == []


def test_clips_share_passes_and_bear_their_own_cost(directory, make_clip, frames):
    """Also of unequal size, and where their captions end at other times."""
    captioner = Captioner.load(directory, device="cpu", max_new_tokens=12)
    shown = (frames[1:3], frames[2:, ::2], frames[:4])
    clips = [replace(make_clip(0, len(some)), frames=some) for some in shown]
    tokenizer = captioner.processor.tokenizer
    said = [set(tokenizer(text).input_ids[1:-1]) for text in captioner.caption(frames)]
    end = min(set.union(*said) - set.intersection(*said))  # with it some captions end
    captioner.model.generation_config.eos_token_id = end
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)

    alone = [Spent() for _ in clips]
    wanted = [
        captioner.describe([clip], spent=[meter])[0]
        for clip, meter in zip(clips, alone, strict=True)
    ]
    lengths = {len(caption.text) for captions in wanted for caption in captions}
    assert len(lengths) > 1
    together = [Spent() for _ in clips]
    assert captioner.describe(clips, 9, together) == wanted
    assert [m.flops for m in together] == [m.flops for m in alone]
    assert together[0].flops < together[1].flops < together[2].flops


def test_threads_may_share_it(captioner, frames):
    expected = captioner.caption(frames)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(captioner.caption, [frames] * 4)) == [expected] * 4


def test_the_default_captioner_uses_65_image_tokens(captioner):
    assert captioner.processor.num_image_tokens == 65
    assert captioner.model.dtype == torch.float32


def test_the_same_seed_builds_the_same_weights(tmp_path):
    train_tokenizer(["a b c " * 9], tmp_path, vocab_size=300)
    before = torch.random.get_rng_state()
    one, two, other = (
        build_captioner(tmp_path, embed_dim=(16, 16, 32), text_dim=32, seed=s)[0].state_dict()
        for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="multiple of the strides' product 16"):
        build_captioner(tmp_path, image_size=100)


def test_frames_are_checked(captioner, frames):
    for bad in (frames[0], frames.astype(np.float32), frames[..., :2]):
        with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\)"):
            captioner.caption(bad)
    with pytest.raises(ValueError, match="batch_size"):
        captioner.caption(frames, batch_size=0)
    with pytest.raises(ValueError, match="<OD>"):
        Captioner(captioner.model, captioner.processor, task="<OD>")


def test_what_cannot_be_loaded_is_named(directory, tmp_path, monkeypatch):
    with pytest.raises(CaptionerError, match=r"nowhere: no such directory"):
        Captioner.load(tmp_path / "nowhere")
    with pytest.raises(CaptionerError, match="does not hold a readable Florence-2"):
        Captioner.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(CaptionerError, match="expected a model of type florence2, found bart"):
        Captioner.load(tmp_path)
    with pytest.raises(ValueError, match="'float12'"):
        Captioner.load(directory, dtype="float12")


def test_an_unreachable_hub_is_named_with_the_alternatives(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CaptionerError, match="nobody/Florence-2-none") as caught:
        Captioner.load("nobody/Florence-2-none")
    assert "pass a directory" in str(caught.value)
    assert "embedded bundle" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "complete", "clean"),
    [
        ("</s><s> A man\n runs.</s>", True, "A man runs."),
        ("car<loc_12><loc_999> red<pad>", True, "car red"),
        ("A man runs. A sign of 3.5 m. And the", False, "A man runs. A sign of 3.5 m."),
        ("A man and the", False, "A man and the"),
        ("a sign: 3 < 5 > 2", True, "a sign: 3 < 5 > 2"),
    ],
)
def test_clean_caption(raw, complete, clean):
    assert clean_caption(raw, complete) == clean
