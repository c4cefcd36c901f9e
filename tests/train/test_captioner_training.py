import json

import numpy as np
import pytest
import torch

from safelens.captioner import Captioner
from safelens.train.captioner import CaptionLoss, train_captioner
from safelens.train.loop import LoopConfig
from safelens.train.tiny_models import build_captioner
from safelens.train.tokenizer import train_tokenizer

torch.set_num_threads(1)
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}
SIDES = ("left", "right")


class Pairs:
    """Frames and captions, from which any step's batch can be drawn again."""

    def __init__(self, frames, captions):
        self.frames, self.captions = frames, captions

    def batch(self, step, size):
        rows = np.random.default_rng(step).choice(len(self.captions), size, replace=False)
        return self.frames[rows], [self.captions[i] for i in rows]


def toy():
    """A square of one colour on one side: six pictures and what they show."""
    frames, captions = [], []
    for name, color in COLORS.items():
        for side in SIDES:
            frame = np.full((64, 64, 3), 200, dtype=np.uint8)
            x = 6 if side == "left" else 36
            frame[20:44, x : x + 24] = color
            frames.append(frame)
            captions.append(f"A {name} square on the {side}.")
    return Pairs(np.stack(frames), captions)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    prompt = "Describe in detail what is shown in the image."
    train_tokenizer([*toy().captions, prompt] * 4, directory, vocab_size=400)
    return directory


def small(tokenizer_dir):
    return build_captioner(
        tokenizer_dir, image_size=64, embed_dim=(16, 32, 32), strides=(8, 2, 2), text_dim=32
    )


def test_learns_to_say_what_it_sees(tokenizer_dir, tmp_path):
    data = toy()
    model, processor = small(tokenizer_dir)
    trained = train_captioner(
        model,
        processor,
        lambda step: data.batch(step, 6),
        tmp_path,
        LoopConfig(steps=110, warmup=5, lr=4e-3),
    )
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(110))
    assert log[0]["loss"] > 5
    assert log[-1]["loss"] < 0.15
    assert Captioner.load(trained, device="cpu").caption(data.frames) == data.captions


def test_an_interrupted_run_ends_with_the_same_weights(tokenizer_dir, tmp_path):
    data = toy()
    config = LoopConfig(steps=8, warmup=2, checkpoint_every=3)

    def run(out, batch_at):
        model, processor = small(tokenizer_dir)
        train_captioner(model, processor, batch_at, out, config)
        return model.state_dict()

    def crash(step):
        if step == 5:
            raise RuntimeError("power cut")
        return data.batch(step, 4)

    whole = run(tmp_path / "whole", lambda step: data.batch(step, 4))
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", crash)
    resumed = run(tmp_path / "cut", lambda step: data.batch(step, 4))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_loss_is_that_of_the_model_itself(tokenizer_dir):
    data = toy()
    model, processor = small(tokenizer_dir)
    loss = CaptionLoss(model, processor)
    frames, captions = data.frames[:3], ["A red square.", "blue", data.captions[2]]
    inputs = processor(images=list(frames), text=["<DETAILED_CAPTION>"] * 3, return_tensors="pt")
    expected = model(**inputs, labels=loss.labels(captions)).loss
    torch.testing.assert_close(loss(frames, captions)["loss"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="3 frames but 2 captions"):
        loss(frames, captions[:2])


def test_long_captions_are_cut_and_still_end(tokenizer_dir):
    model, processor = small(tokenizer_dir)
    labels = CaptionLoss(model, processor, max_tokens=4).labels(["A red square on the left.", "A"])
    assert labels.shape == (2, 4)
    end = processor.tokenizer.eos_token_id
    assert labels[0, -1] == end
    assert labels[1].tolist() == [processor.tokenizer("A").input_ids[1], end, -100, -100]
