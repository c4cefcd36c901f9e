"""Text in a video is data: whatever it says, S2's request keeps its form and its answer stays one.

What the words of an attack do to a verdict is counted by `benchmarks/attacks.py`; here is what must hold exactly.
"""

import os
import re

import pytest

from benchmarks.attacks import POSITIONS, SAMPLES, answers, attacks, clips_of
from safelens.cascade import SafeLens
from safelens.deliberate import Deliberator
from safelens.policy import Policy
from safelens.prompts import (
    deliberation_answer,
    deliberation_request,
    frame_captions,
    parse_response,
    plain_text,
)
from safelens.verdict import Caption

ATTACKS = attacks()
CAPTIONS = [Caption(time_s=float(t), text=f"A man walks by house {t}.") for t in range(4)]
CONTROL = re.compile(
    # Qwen, LFM2, Llama 3, Phi, DeepSeek, Gemma, InternVL; thoughts and tools; Mistral, BERT
    r"<[|｜][^>]*[|｜]>|</?[A-Za-z][\w.]*>|<</?SYS>>|<0x\w\w>|\[/?[A-Z_]+\]"
)


@pytest.fixture(scope="module")
def lens():
    """The embedded bundle, which leaves every video to S2."""
    with SafeLens.load("tiny", tau=1.01) as found:
        yield found


def requests(policy, put, text):
    scores = dict.fromkeys(policy.labels, 0.1)
    return deliberation_request(policy, put(CAPTIONS, text), scores)


def test_there_are_enough_of_each_kind():
    assert len(ATTACKS) >= 100
    assert len({attack.text for attack in ATTACKS}) == len(ATTACKS)
    assert len({attack.kind for attack in ATTACKS}) >= 10
    assert sum(bool(CONTROL.search(attack.text)) for attack in ATTACKS) >= 40


def test_no_text_holds_a_control_token_of_any_family():
    for attack in ATTACKS:
        plain = plain_text(attack.text)
        assert not CONTROL.search(plain), attack
        assert len(plain.splitlines()) <= 1, attack
        assert plain_text(plain) == plain, attack


@pytest.mark.parametrize("position", POSITIONS)
def test_no_token_of_the_request_is_a_control_token(lens, position):
    vlm = lens.screener.vlm
    control = set(vlm.tokenizer.added_tokens_decoder)
    assert len(control) >= 7
    for attack in ATTACKS:
        ids = vlm.ids(requests(lens.policy, POSITIONS[position], attack.text)).tolist()
        assert not control & set(ids), attack
        assert len(ids) < 20_000, attack


@pytest.mark.parametrize("position", POSITIONS)
def test_the_request_has_the_sections_and_lines_that_it_has_without(position):
    policy = Policy.load("default")
    before = requests(policy, POSITIONS[position], "")
    own = before.split("\n")
    words = ("FRAMES_LEVEL_ANALYSIS", "INITIAL_CONFIDENCE_SCORES", "DESCRIPTION", "EXPLANATION",
             "GUARDRAIL", "Set the value")  # fmt: skip
    for attack in ATTACKS:
        request = requests(policy, POSITIONS[position], attack.text)
        lines = request.splitlines()
        assert len(lines) == len(own), attack
        for line, other in zip(lines, own, strict=True):
            head, _, _ = other.partition("house")
            assert line.startswith(head) if other.startswith("Frame-") else line == other, attack
        for word in words[:5]:
            assert request.count(word) == before.count(word), (word, attack)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_model_that_repeats_what_it_read_gives_one_answer(position):
    """A server's model may quote a caption; the quotation is no field and no second answer."""
    policy = Policy.load("default")
    for attack in ATTACKS:
        read = frame_captions(POSITIONS[position](CAPTIONS, attack.text))
        quoted = " ".join(line for line in read.splitlines() if line.startswith("Frame-"))
        text = deliberation_answer(policy, quoted, "It is violence.", ["violence"])
        found = parse_response(policy, text)
        assert [name for name, flag in found.flags.items() if flag] == ["violence"], attack
        assert found.explanation == "It is violence.", attack


def test_s2_gives_one_well_formed_answer_to_each(lens):
    """With the embedded bundle; its budget is cut, since the form is the same for any."""
    [clip] = clips_of(lens, [SAMPLES / "hard.mp4"])
    short = Deliberator(
        lens.screener.vlm, lens.policy, max_new_tokens=12, prompt=lens.deliberator.prompt
    )
    for position, put in POSITIONS.items():
        asked = ((a, clip, put(clip.captions, a.text)) for a in ATTACKS[::2])
        seen = 0
        for attack, result in answers(short, asked):
            seen += 1
            assert result.text.count("GUARDRAIL") == 1, (position, attack)
            response = parse_response(lens.policy, result.text)
            assert response.flags == result.flags, (position, attack)
            assert list(result.flags) == [c.id for c in lens.policy.categories]
        assert seen == len(ATTACKS[::2])


def test_a_file_s_name_changes_nothing(lens, tmp_path):
    """Of each kind one, as the name of a copy of a video."""
    paths = [SAMPLES / "hard.mp4"]
    for number, attack in enumerate({a.kind: a for a in ATTACKS}.values()):
        name = attack.text.encode("utf-8", "replace").replace(b"/", b"|").replace(b"\0", b" ")
        paths.append(
            os.fsdecode(os.path.join(os.fsencode(tmp_path), b"%d%s.mp4" % (number, name[:200])))
        )
        os.link(paths[0], paths[-1])
    own, *others = (moderation.verdict for moderation in lens.moderate_many(paths))
    assert own.decided_by == "deliberate"
    assert len(others) >= 10
    for path, found in zip(paths[1:], others, strict=True):
        for field in ("status", "label", "description", "explanation", "captions"):
            assert getattr(found, field) == getattr(own, field), path
        assert [c.score for c in found.categories] == pytest.approx(
            [c.score for c in own.categories], abs=1e-4
        )
