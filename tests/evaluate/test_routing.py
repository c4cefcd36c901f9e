"""Routing answers of both stages is what the cascade does, at what it costs: for tiny, on its own world."""

import asyncio
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from safelens.cascade import SafeLens
from safelens.evaluate import safelens_system
from safelens.evaluate.answers import Answer
from safelens.evaluate.routing import route
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.policy import SAFE
from safelens.safeworld.writer import write_dataset
from safelens.thresholds import Thresholds
from safelens.video import ClipOptions, VideoReader

torch.set_num_threads(1)
BOTH = ("screen", "deliberate")


def ask(system, clips):
    async def all_of_them():
        async with system:
            return [await system.answer(clip) for clip in clips]

    return asyncio.run(all_of_them())


def same(answer, verdict):
    """Whether an answer is the verdict, field by field."""
    if verdict.label is None:
        assert (answer.outcome, answer.flags, answer.label) == ("undecided", None, None)
        assert answer.error
    else:
        assert answer.outcome == "decided"
        assert list(answer.flags) == [c.id for c in verdict.categories if c.flagged]
        assert answer.label == verdict.label
        assert answer.confidence == pytest.approx(verdict.confidence, abs=1e-5)
    for category in verdict.categories:
        assert answer.scores[category.id] == pytest.approx(category.score, abs=1e-5)
    assert (answer.description, answer.explanation) == (verdict.description, verdict.explanation)
    assert list(answer.captions) == verdict.captions
    assert [(e.start_s, e.end_s, e.category) for e in answer.evidence] == [
        (e.start_s, e.end_s, e.category) for e in verdict.evidence
    ]
    assert set(answer.seconds) == set(verdict.timing) - {"decode"}
    assert answer.gflops == pytest.approx(verdict.cost.gflops, rel=1e-9)
    assert answer.prompt_tokens == verdict.cost.prompt_tokens
    assert answer.generated_tokens == verdict.cost.generated_tokens


@pytest.fixture(scope="module")
def tiny_clips(tmp_path_factory):
    """Two clips of the world, and one of nothing but noise."""
    folder = tmp_path_factory.mktemp("world")
    write_dataset(folder, clips=2, seed=11)
    system = SafeLensSystem("tiny", "tiny")
    with VideoReader(ClipOptions(**system.clip.model_dump())) as reader:
        clips = [reader.read(path) for path in sorted((folder / "videos").iterdir())]
    noise = np.random.default_rng(0).integers(0, 255, clips[0].frames.shape, dtype=np.uint8)
    return [*clips[:2], replace(clips[0], frames=noise, sha256="0" * 64)]


def moderated(lens, clip, monkeypatch):
    """The cascade's verdict on a clip that is decoded already."""
    monkeypatch.setattr(VideoReader, "read", lambda self, path: clip)
    return lens.moderate(clip.path).verdict


def test_tiny_routed_is_tiny_moderating(tiny_clips, monkeypatch):
    system = SafeLensSystem("tiny", "tiny")
    answers = ask(system, tiny_clips)
    seen = set()
    with SafeLens.load("tiny") as lens:
        for both, clip in zip(answers, tiny_clips, strict=True):
            screen, deliberate = both["screen"], both["deliberate"]
            assert (screen.id, deliberate.id) == (clip.sha256, clip.sha256)
            for tau, outside in ((system.thresholds.tau, "refuse"), (1.01, "escalate")):
                lens.thresholds, lens.outside_domain = Thresholds(tau), outside
                verdict = moderated(lens, clip, monkeypatch)
                same(route(screen, deliberate, Thresholds(tau), outside), verdict)
                seen.add((verdict.status, verdict.decided_by))
            if deliberate.outcome == "decided":
                assert deliberate.text.startswith("DESCRIPTION:")
    assert seen == {("ok", "screen"), ("ok", "deliberate"), ("out_of_domain", None)}


@pytest.fixture(scope="module")
def lens(bundle_dir):
    with SafeLens.load(bundle_dir, device="cpu") as found:
        yield found


def test_every_way_through_a_random_bundle(lens, clips, monkeypatch):
    cut = replace(clips[0], truncated=True, notes=("truncated: it ends early",))
    seen = set()
    for clip in (clips[1], cut):
        both = safelens_system._ask(lens, clip, BOTH)
        bound = both["screen"].confidence
        # A truncated clip that S1 calls safe has no label, but the class's threshold all the same.
        label = max(both["screen"].scores, key=both["screen"].scores.get)
        above = float(np.nextafter(bound, 2.0))
        for thresholds in (
            Thresholds(bound),
            Thresholds(above),
            Thresholds(1.01, {label: bound}),
            Thresholds(0.0, {label: above}),
        ):
            lens.thresholds, lens.outside_domain = thresholds, "escalate"
            verdict = moderated(lens, clip, monkeypatch)
            assert verdict.decided_by == (
                "screen" if thresholds.of(label) == bound else "deliberate"
            )
            same(route(both["screen"], both["deliberate"], thresholds, "escalate"), verdict)
            seen.add((verdict.status, verdict.decided_by))
    assert {status for status, _ in seen} == {"ok", "partial"}
    assert ("ok", "screen") in seen
    assert ("ok", "deliberate") in seen


def test_a_reasoner_of_its_own_reads_the_video_itself(
    make_bundle, small_vlm, clips, tmp_path, monkeypatch
):
    model, processor = small_vlm(seed=9)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    more = {"reasoner": tmp_path / "other"}
    folder = make_bundle(more=more, deliberate={"model": "reasoner"}, tau=1.01)
    with SafeLens.load(folder, device="cpu") as lens:
        lens.outside_domain = "escalate"
        both = safelens_system._ask(lens, clips[1], BOTH)
        same(both["deliberate"], moderated(lens, clips[1], monkeypatch))


def test_a_stage_that_fails_fails_alone(lens, clips, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lens.deliberator, "deliberate", broken)
    both = safelens_system._ask(lens, clips[0], BOTH)
    assert both["screen"].outcome == "decided"
    assert both["deliberate"].outcome == "failed"
    assert both["deliberate"].error.startswith(
        f"{clips[0].path}: the model failed (RuntimeError: out"
    )
    assert route(both["screen"], both["deliberate"], Thresholds(1.01)) == both["deliberate"]
    assert (
        route(both["screen"], both["deliberate"], Thresholds(0.0)).outcome == both["screen"].outcome
    )


def answer(**fields):
    usual = {"id": "a", "outcome": "decided", "flags": (), "label": SAFE, "confidence": 0.7}
    return Answer(**(usual | fields))


def test_the_bound_itself():
    screen, deliberate = answer(), answer(flags=("violence",), label="violence")
    assert route(screen, deliberate, Thresholds(0.7)) is screen
    assert route(screen, deliberate, Thresholds(0.71)) is deliberate
    strange = answer(familiar=False)
    assert route(strange, deliberate, Thresholds(0.0)) is deliberate
    refused = route(strange, deliberate, Thresholds(0.0), "refuse")
    assert (refused.outcome, refused.label, refused.flags) == ("undecided", None, None)
    assert Answer.model_validate(refused.model_dump()) == refused
    lost = Answer(id="a", outcome="failed", error="gone")
    assert route(lost, deliberate, Thresholds(0.0)) is lost


def test_what_an_answer_depends_on(bundle_dir, make_bundle):
    def known(folder):
        return SafeLensSystem("a", str(folder)).identity()

    same_one = make_bundle(name="renamed", tau=0.3, outside_domain="escalate")
    assert known(bundle_dir) == known(same_one)
    assert known(bundle_dir) != known(make_bundle(deliberate={"max_new_tokens": 9}))
    assert known(bundle_dir) != known(make_bundle(clip={"max_frames": 3}))
    # S2 is told scores that were made with it
    assert known(bundle_dir) != known(make_bundle(screen={"temperature": 2.0}))
    copy = bundle_dir.parent / "other-probe"
    shutil.copytree(bundle_dir / "probe", copy)
    weights = next(copy.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert known(bundle_dir) != known(make_bundle(more={"probe": copy}))
