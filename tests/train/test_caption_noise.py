"""Words that say nothing: where they are put, how many, and that captions stay whole beneath them."""

import random
import re

import pytest

from safelens import prompts
from safelens.train.caption_noise import CaptionNoise
from safelens.train.embedder import LabelledClip
from safelens.train.reasoner import AugmentedClip
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel

CAPTIONS = tuple(Caption(time_s=float(t), text=f"A man walks by house {t}.") for t in range(5))


@pytest.fixture(scope="module")
def vlm(vlm_dir):
    return VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)


def made(vlm, policy, count=300, **options):
    noise = CaptionNoise(vlm.tokenizer, policy, **({"share": 1.0} | options))
    return [noise(CAPTIONS, random.Random(i)) for i in range(count)]


def test_every_caption_still_says_what_it_said(vlm, policy):
    for found in made(vlm, policy):
        assert [c.time_s for c in found] == [c.time_s for c in CAPTIONS]
        changed = 0
        for own, told in zip(CAPTIONS, found, strict=True):
            assert own.text in told.text
            changed += own.text != told.text
        assert changed in (1, len(CAPTIONS))


def test_it_stands_before_after_in_one_caption_and_in_all(vlm, policy):
    places = set()
    for found in made(vlm, policy):
        rows = [i for i, c in enumerate(found) if c.text != CAPTIONS[i].text]
        before = found[rows[0]].text.endswith(CAPTIONS[rows[0]].text)
        said = {found[i].text.replace(CAPTIONS[i].text, "") for i in rows}
        places.add((len(rows) > 1, before, len(said) > 1))
    assert places >= {(many, before, False) for many in (True, False) for before in (True, False)}
    assert (True, False, True) in places  # other words in each


def test_the_share_and_the_length_are_kept(vlm, policy):
    some = made(vlm, policy, share=0.4)
    assert 0.3 < sum(found != CAPTIONS for found in some) / len(some) < 0.5
    assert all(found == CAPTIONS for found in made(vlm, policy, share=0.0))
    own = len(vlm.ids(prompts.frame_captions(CAPTIONS)))
    lengths = [
        len(vlm.ids(prompts.frame_captions(found))) - own for found in made(vlm, policy, longest=16)
    ]
    # a bearer's words, and what is cut between two bytes, come on top
    assert max(lengths) <= 5 * (16 + 16)
    assert min(lengths) < 5


def test_s2s_request_keeps_its_form(vlm, policy):
    head = re.compile(r"Frame-\d \(\d\.0 s\): ")
    special = set(vlm.tokenizer.all_special_ids)
    for found in made(vlm, policy):
        read = prompts.frame_captions(found)
        assert len([line for line in read.splitlines() if head.match(line)]) == len(CAPTIONS)
        assert read.count("GUARDRAIL") == 0
        assert not special & set(vlm.ids(read).tolist())


def test_all_kinds_of_words_come(vlm, policy):
    noise = CaptionNoise(vlm.tokenizer, policy)
    texts = [noise.text(24, random.Random(i)) for i in range(300)]
    assert all(texts)
    assert any("Probability = 0." in text for text in texts)
    assert any("GUARDRAIL: {" in text for text in texts)
    assert any(policy.categories[0].core_value[:20] in text for text in texts)
    assert any(re.search("[а-я]|[α-ω]|[一-龥]", text) for text in texts)
    assert any(text.isupper() for text in texts)


def test_a_batch_keeps_all_but_its_captions_and_comes_again(vlm, policy):
    clip = LabelledClip(None, ("abuse",), CAPTIONS, "A fight.", "Violence.")
    batch = [AugmentedClip(clip, CAPTIONS, {"safe": 1.0})] * 8
    noise = CaptionNoise(vlm.tokenizer, policy)
    once, again, other = (noise.noisy(batch, seed) for seed in ("0/1", "0/1", "0/2"))
    assert once == again != other
    assert {len(one.captions) for one in once} == {len(CAPTIONS)}
    assert all(one.clip is clip and one.scores == {"safe": 1.0} for one in once)
    assert len({one.captions for one in once}) > 4
