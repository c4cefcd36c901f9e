"""Drawn sets are read as records and clips, and texts for reading quote what they show."""

import random
from pathlib import Path

import pytest

from recipes.tiny.data import DrawnClips, DrawnReader, draw
from recipes.tiny.reading import deliberated, phrase_in, quoted, readable, repeated
from safelens.policy import Policy
from safelens.prompts import parse_response


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> DrawnClips:
    out = tmp_path_factory.mktemp("drawn")
    draw(out, {"clips": 40, "seed": 11}, {})
    return DrawnClips.open(Path(out))


def test_records_name_clips_that_the_reader_finds(drawn):
    reader = DrawnReader({"train": drawn}, "large")
    for record in drawn.records("train")[:5]:
        clip = reader.read(record.video)
        assert clip.frames.shape[1:] == (128, 128, 3)
        assert [c.time_s for c in record.captions] == pytest.approx(clip.timestamps.tolist())


def test_noise_alters_labels_and_keeps_the_truth(drawn):
    clean, noisy = drawn.records("train"), drawn.records("train", noise=0.5, seed=3)
    wrong = [record for record in noisy if record.mislabelled]
    assert 8 <= len(wrong) <= 32
    assert [r.true_labels for r in noisy] == [r.labels for r in clean]
    assert [r.labels for r in drawn.records("train", noise=0.5, seed=3)] == [
        r.labels for r in noisy
    ]


def test_texts_quote_new_words_that_stand_in_their_prompt(drawn):
    records = readable(drawn.records("train"))
    assert records
    rng = random.Random(5)
    policy = Policy.load("default")
    for _ in range(30):
        for prompt, answer in (
            quoted(rng, records, most=3),
            deliberated(rng, policy, records, most=6),
        ):
            first = answer.splitlines()[0]
            words = [w.strip(".,:") for w in first.split() if w.strip(".,:").isupper()]
            shown = [w for w in words if len(w) > 1 and w != "DESCRIPTION"]
            assert shown
            assert all(word in prompt for word in shown)
            assert first.startswith("DESCRIPTION: ")


def test_every_other_deliberated_text_is_a_trace_of_the_labels_given(drawn):
    noisy = readable(drawn.records("train", noise=0.5, seed=3))
    policy = Policy.load("default")
    rng = random.Random(5)
    whole = 0
    for record in noisy * 10:
        _, answer = deliberated(rng, policy, [record], most=6)
        if "GUARDRAIL:" in answer:
            whole += 1
            flags = parse_response(policy, answer).flags
            assert {name for name, flag in flags.items() if flag} == set(record.labels)
    assert 0.3 < whole / (10 * len(noisy)) < 0.7


def test_repeated_words_are_the_same(drawn):
    prompt, answer = repeated(random.Random(1))
    assert prompt == answer


def test_phrases_are_found_whole():
    assert phrase_in("A phone shows the text CLEVER BOY.") == "CLEVER BOY"
    assert phrase_in("A person walks.") is None
