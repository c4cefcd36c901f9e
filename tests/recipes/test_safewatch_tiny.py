"""SafeWatch's stages on a handful of drawn clips and a model with random weights; drawn policies and their truth."""

import json
import math
import random

import pytest
import torch
from safetensors.torch import load_file

from recipes.safewatch_tiny import booleans, kept, preference, start, training
from recipes.safewatch_tiny.clips import Clips, asked
from recipes.safewatch_tiny.kinds import PHRASES, SEEN, UNSEEN, kinds_of
from recipes.safewatch_tiny.policies import default_policy, explained, sampled
from recipes.tiny import data
from recipes.tiny.parts import sets_of
from safelens.safeworld.scenarios import Scenario
from safelens.safeworld.scene import SCENARIOS
from safelens.screen import Screener
from safelens.train.embedder import Turns, true_and_false
from safelens.train.tiny_vlm import build_vlm
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)
SETTINGS = {
    "batch": 4,
    "phrases": 16,
    "steps": 1,
    "warmup": 1,
    "lessons": [
        {"steps": 2, "groups": 4, "most": 1, "own": 0.0},
        {"groups": 2, "most": 10, "own": 0.5},
    ],
    "others": 0.1,
    "lr": 1e-3,
    "muon_lr": 0.01,
    "seed": 0,
    "least": 0.2,
    "encoding": "parallel",
}


@pytest.fixture(scope="module")
def needs(tmp_path_factory, tokenizer_dir):
    """Thirty drawn clips, and a model that has learned nothing."""
    folder = tmp_path_factory.mktemp("stages")
    for name in ("train", "base"):
        (folder / name).mkdir()
    data.draw(folder / "train", {"clips": 30, "seed": 5}, {})
    model, processor = build_vlm(tokenizer_dir, seed=0)
    model.save_pretrained(folder / "base" / "model")
    processor.save_pretrained(folder / "base" / "model")
    return {name: folder / name for name in ("train", "base")}


@pytest.fixture
def vlm(needs):
    return VisionLanguageModel.load(needs["base"] / "model", frame_pixels=data.SMALL**2)


def test_every_kind_of_clip_has_words():
    every: list[Scenario] = list(SCENARIOS)
    wanted = {(s.name, bad) for s in every for bad in (True, False) if s.label != "safe" or not bad}
    assert set(PHRASES) == wanted
    assert set(SEEN) | set(UNSEEN) == wanted
    texts = [text for phrases in PHRASES.values() for text in phrases]
    assert len(set(texts)) == len(texts)


def test_drawn_policies_speak_of_no_unseen_kind_and_truth_follows_their_rules():
    rng = random.Random(0)
    sizes, orders = set(), set()
    for _ in range(300):
        found = sampled(rng)
        sizes.add(len(found.policy.categories))
        orders.add(tuple(c.name for c in found.policy.categories))
        text = found.policy.to_yaml().casefold()
        for kind in UNSEEN:
            assert found.labels([kind]) == ()
            assert not any(phrase in text for phrase in PHRASES[kind] if len(phrase) > 20)
        for category in found.policy.categories:
            blocked = {r.text.rstrip(".").casefold() for r in category.rules if r.kind == "blocked"}
            said = {k for k in PHRASES for p in PHRASES[k] if p.casefold() in blocked}
            assert said == found.blocked[category.id]
            assert all(category.id in found.labels([kind]) for kind in said)
    assert sizes == {1, 2, 3, 4, 5, 6}
    one = [sampled(rng, most=1).policy.categories for _ in range(50)]
    assert all(len(found) == 1 and len(found[0].rules) == 1 for found in one)
    assert len(orders) > 250


def test_the_default_policys_truth_is_the_records(needs, vlm):
    clips, own = Clips(needs, vlm), default_policy()
    for record in clips.records:
        assert set(own.labels(kinds_of(record))) == set(record.labels)
        sentences = explained(record, own).count(": ")
        assert sentences == len(record.scenario.split("+"))
        for name in record.labels:
            assert own.policy.category(name).name in explained(record, own)


def test_questions_are_of_what_some_clips_show_and_answered_by_the_truth(needs, vlm):
    rng, records = random.Random(1), Clips(needs, vlm).records[:8]
    phrases, truth = asked(records, rng)
    assert truth.shape == (8, len(phrases))
    assert truth.any(0).all()
    for phrase, shows in zip(phrases, truth.T, strict=True):
        [kind] = [kind for kind, words in PHRASES.items() if phrase in words]
        assert kind in SEEN
        assert shows.tolist() == [kind in kinds_of(record) for record in records]
    again, same = asked(records, random.Random(2))
    assert again != phrases
    assert same.shape == truth.shape


def test_a_question_is_answered_as_if_it_were_asked_alone(needs, vlm):
    videos = [one.clip.video for one in Clips(needs, vlm).group(3, (0, 1))]
    phrases = ["a dog that is struck", "an empty street", "a flag"]
    with torch.no_grad():
        states = booleans.of_questions(vlm, videos, phrases)
        for row, video in enumerate(videos):
            for column, phrase in enumerate(phrases):
                [[alone]] = booleans.of_questions(vlm, [video], [phrase])
                torch.testing.assert_close(states[row, column], alone, atol=2e-5, rtol=0)
    assert (states[0, 0] - states[0, 1]).abs().max() > 1e-2


def test_policies_grow_from_lesson_to_lesson(needs, vlm):
    from safelens.assembly import Encoding

    batches = training.Batches(vlm, needs, SETTINGS, Encoding("parallel"))
    most = [
        max(len(batches._policy(number, group)[0].policy.categories) for group in range(20))
        for number in range(4)
    ]
    assert most[:2] == [1, 1]
    assert min(most[2:]) > 6


@pytest.mark.parametrize("encoding", ["parallel", "sequential"])
def test_each_task_has_a_loss_that_trains(needs, vlm, encoding):
    from safelens.assembly import Encoding

    least = 0.2 if encoding == "parallel" else None
    batches = training.Batches(vlm, needs, SETTINGS | {"least": least}, Encoding(encoding))
    for number, task in enumerate(sorted(set(training.GUARDRAIL + training.PRUNING))):
        found = batches.loss(task, number)
        assert found["loss"].isfinite()
        found["loss"].backward()
        again = batches.loss(task, number)
        assert again["loss"].item() == pytest.approx(found["loss"].item(), rel=1e-4)
    weight = vlm.model.model.language_model.layers[0].self_attn.k_proj.weight
    assert weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("encoding", "keep"), [("parallel", None), ("parallel", 0.3), ("sequential", None)]
)
def test_booleans_are_trained_as_s1_asks_them(needs, vlm, encoding, keep):
    from safelens.assembly import Encoding

    how = Encoding(encoding, keep=keep)
    under = sampled(random.Random(4), most=8)
    turns = Turns(vlm, under.policy, encoding=how)
    shown = Clips(needs, vlm).group(3, (0, 1), under)
    with torch.no_grad():
        states = booleans.of_videos(turns, [one.clip.video for one in shown], keep)
        odds = booleans.log_odds(vlm, states)
    screener = Screener(vlm, under.policy, prompt=how.prompt(vlm, under.policy, "policy_first"))
    reader = data.DrawnReader(sets_of(needs), "small")
    for row, one in zip(odds, shown, strict=True):
        [used] = screener.screen([reader.read(one.record.video)])
        for value, category in zip(row, turns.policy.categories, strict=True):
            wanted = math.log(used.scores[category.id] / used.scores["safe"])
            assert float(value) == pytest.approx(wanted, abs=1e-4)


def test_what_is_true_weighs_as_much_as_what_is_false(vlm):
    states = torch.randn(2, 3, vlm.hidden_size)
    truth = torch.tensor([[True, False, False], [False, False, False]])
    yes, no = true_and_false(vlm)
    logits = vlm.model.lm_head(states).detach().log_softmax(-1)
    false = -logits[..., no][~truth].mean()
    wanted = (false - logits[0, 0, yes]) / 2
    found = booleans.balanced_loss(vlm, [states[:1], states[1:]], [truth[:1], truth[1:]])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    only_false = booleans.balanced_loss(vlm, [states[1:]], [truth[1:]])
    assert only_false.item() == pytest.approx(-logits[1, :, no].mean().item(), rel=1e-5)


def test_half_of_the_clips_violate_a_policy_that_is_given(needs, vlm):
    clips, own = Clips(needs, vlm), default_policy()
    for seed in range(5):
        shown = clips.group(4, (seed,), own)
        assert len({one.record.id for one in shown}) == len(shown)
        assert sum(bool(one.record.labels) for one in shown) <= 2
    assert any(one.record.labels for one in clips.group(4, (0,), own))


def test_a_kept_stage_is_not_trained_again(needs, vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "KEPT", tmp_path / "kept")
    settings = SETTINGS | {"tasks": ["guardrail"], "from": "base"}
    first, again = (tmp_path / work / "guardrail-0123" for work in ("one", "two"))
    training.train(first, settings, needs)
    assert kept.keep(tmp_path / "one") == []  # it has not finished
    (first / "stage.json").write_text("{}")
    [file] = kept.keep(tmp_path / "one")
    assert file.name == "guardrail-0123.safetensors"
    training.train(again, settings, needs)
    assert not (again / "log.jsonl").exists()
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (first, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    training.train(tmp_path / "guardrail-4567", settings, needs)
    assert (tmp_path / "guardrail-4567" / "log.jsonl").exists()


def test_the_stages_begin_with_the_embedded_bundle(tmp_path):
    start.begin(tmp_path, {"sha256": start.digest()}, {})
    assert (tmp_path / "model" / "config.json").is_file()
    with pytest.raises(ValueError, match="has changed"):
        start.begin(tmp_path, {"sha256": "0" * 64}, {})


def test_the_stages_follow_each_other(needs, tmp_path):
    done = dict(needs)
    for name, before in (("guardrail", "base"), ("pruning", "guardrail")):
        done[name] = tmp_path / name
        settings = SETTINGS | {"tasks": ["guardrail"], "from": before}
        training.train(done[name], settings, done)
        assert json.loads((done[name] / "log.jsonl").read_text())["loss"] > 0
    third = {"batch": 2, "steps": 1, "warmup": 1, "lr": 1e-3, "rank": 2, "beta": 0.1, "own": 0.5}
    preference.tune(tmp_path / "third", third | {"least": 0.2, "seed": 0}, done)
    assert (tmp_path / "third" / "adapter" / "adapter_config.json").is_file()


def test_worse_answers_are_worse(needs, vlm):
    clips, rng = Clips(needs, vlm), random.Random(2)
    own = default_policy()
    shown, other = clips.group(1, (1, 2))[0], clips.group(1, (3, 4))[0]
    right = shown.under(own)
    long = preference.wordy(right, other, own, rng)
    assert len(long.explanation) > len(right.explanation) + 100
    assert right.explanation in long.explanation
    assert preference.false_flags(right, other, own, rng).labels != right.labels
    false = preference.false_explanation(right, other, own, rng)
    assert false.labels == right.labels
    assert false.explanation != right.explanation
