import shutil
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import safelens
from safelens.bundle import Bundle, BundleError, ClipSettings, write_bundle
from safelens.cascade import SafeLens
from safelens.outcome import Decision
from safelens.pipeline import UNDER_WAY
from safelens.policy import SAFE, Policy
from safelens.prompts import parse_response
from safelens.thresholds import Thresholds
from safelens.verdict import Verdict
from safelens.video import VideoReader

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lens(bundle_dir):
    with SafeLens.load(bundle_dir, device="cpu") as found:
        yield found


@pytest.fixture
def routed(lens):
    """The system with tau and the guard set as asked for, and put back."""
    before = lens.thresholds, lens.outside_domain, lens.screener.guard

    def change(tau, guard=None, outside="refuse"):
        lens.thresholds = Thresholds(tau)
        lens.outside_domain, lens.screener.guard = outside, guard
        return lens

    yield change
    lens.thresholds, lens.outside_domain, lens.screener.guard = before


class Guard:
    """A domain guard that accepts all or nothing."""

    def __init__(self, accept):
        self.accept = accept

    def in_domain(self, features):
        return np.float64(0.5 if self.accept else 0.0)

    def accepts(self, features):
        return np.bool_(self.accept)


def test_what_a_decision_amounts_to():
    several = Decision(
        "deliberate", {"a": True, "b": True, "c": False}, {"a": 0.6, "b": 0.7, "c": 0.9}
    )
    assert (several.flagged, several.label, several.confidence) == (["a", "b"], "b", 0.7)
    none = Decision("deliberate", {"a": False, "b": False}, {"a": 0.1, "b": 0.4})
    assert (none.flagged, none.label, none.confidence) == ([], SAFE, 0.6)
    screened = Decision("screen", {"a": False}, {"a": 0.2, SAFE: 0.8})
    assert (screened.label, screened.confidence) == (SAFE, 0.8)


def test_every_verdict_is_complete(lens, videos, policy, bundle_dir):
    for found, path in zip(lens.moderate_many(videos), videos, strict=True):
        verdict = found.verdict
        assert verdict.video == str(path)
        assert found.clip is not None
        assert verdict.sha256 == found.clip.sha256
        assert verdict.status in ("ok", "out_of_domain")
        assert verdict.provenance.bundle == "small 1"
        assert verdict.provenance.bundle_sha256 == Bundle.load(bundle_dir).sha256
        assert verdict.provenance.policy_sha256 == policy.sha256
        assert verdict.provenance.knows == "drawings"
        assert verdict.provenance.tau == 0.9
        assert verdict.provenance.package == safelens.__version__
        assert verdict.cost.gflops > 0
        assert verdict.cost.prompt_tokens > 0
        assert Verdict.from_json(verdict.to_json()) == verdict


def test_tau_0_leaves_all_to_the_screen(routed, videos, policy):
    lens = routed(0.0)
    for path in videos:
        verdict = lens.moderate(path).verdict
        assert (verdict.status, verdict.decided_by) == ("ok", "screen")
        scores = {c.id: c.score for c in verdict.categories}
        s1 = lens.screener.screen([lens.moderate(path).clip])[0]
        assert scores == pytest.approx({k: v for k, v in s1.scores.items() if k != SAFE}, abs=1e-4)
        assert verdict.label == s1.label
        assert verdict.flagged == (s1.label != SAFE)
        assert verdict.confidence == pytest.approx(s1.confidence, abs=1e-4)
        wanted = {"decode", "screen"} | ({"evidence"} if verdict.flagged else set())
        assert set(verdict.timing) == wanted
        assert bool(verdict.evidence) == verdict.flagged
        assert verdict.captions == []
        assert verdict.cost.generated_tokens == 0


def test_tau_above_1_leaves_all_to_deliberation(routed, videos):
    lens = routed(1.01)
    for found in lens.moderate_many(videos):
        verdict = found.verdict
        assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
        assert len(verdict.captions) == len(found.clip.frames)
        assert [c.time_s for c in verdict.captions] == found.clip.timestamps.tolist()
        assert {"decode", "screen", "caption", "deliberate"} <= set(verdict.timing)
        assert verdict.cost.generated_tokens <= 8
        for category in verdict.categories:
            assert category.flagged == (category.score > 0.5)
        if not verdict.flagged:
            assert verdict.confidence == pytest.approx(1 - max(c.score for c in verdict.categories))


def test_confidence_equal_to_tau_stands(routed, videos):
    clip = routed(0.0).moderate(videos[0]).clip
    s1 = routed(0.0).screener.screen([clip])[0]
    assert routed(s1.confidence).moderate(videos[0]).verdict.decided_by == "screen"
    above = float(np.nextafter(s1.confidence, 2.0))
    assert routed(above).moderate(videos[0]).verdict.decided_by == "deliberate"


def test_a_class_may_have_its_own_tau(make_bundle, lens, videos, policy):
    clips = [lens.moderate(path).clip for path in videos]
    answers = [lens.screener.screen([clip])[0] for clip in clips]
    own = answers[0].label
    for tau, taus in ((1.01, {own: 0.0}), (0.0, {own: 1.01})):
        folder = make_bundle(tau=tau, taus=taus, screen={"domain": None})
        with SafeLens.load(folder, device="cpu") as changed:
            assert changed.thresholds.of(own) == taus[own]
            assert {changed.thresholds.of(n) for n in policy.labels if n != own} == {tau}
            verdicts = [found.verdict for found in changed.moderate_many(videos)]
        for verdict, s1 in zip(verdicts, answers, strict=True):
            stands = changed.thresholds.of(s1.label) == 0
            assert verdict.decided_by == ("screen" if stands else "deliberate")
            assert verdict.provenance.taus == taus
    with SafeLens.load(folder, tau=0.0, device="cpu") as changed:
        assert changed.thresholds.of(own) == 0
        verdict = changed.moderate(videos[0]).verdict
        assert (verdict.decided_by, verdict.provenance.taus) == ("screen", None)


def test_outside_the_domain_nothing_is_decided_or_it_escalates(routed, videos):
    verdict = routed(0.0, Guard(False)).moderate(videos[0]).verdict
    assert (verdict.status, verdict.flagged, verdict.label) == ("out_of_domain", None, None)
    assert verdict.in_domain == 0
    assert verdict.error.code == "out_of_domain"
    assert "drawings" in verdict.error.message
    verdict = routed(0.0, Guard(False), "escalate").moderate(videos[0]).verdict
    assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
    assert routed(0.0, Guard(True)).moderate(videos[0]).verdict.decided_by == "screen"


def test_a_truncated_video_is_never_safe(routed, videos, monkeypatch):
    import dataclasses

    for tau in (0.0, 1.01):
        lens = routed(tau)
        read, cut = VideoReader.read, {"truncated": True, "notes": ("cut off at 1 s",)}
        with monkeypatch.context() as patch:
            patch.setattr(
                VideoReader,
                "read",
                lambda self, path, read=read, cut=cut: dataclasses.replace(read(self, path), **cut),
            )
            verdicts = [found.verdict for found in lens.moderate_many(videos)]
        whole = [found.verdict for found in lens.moderate_many(videos)]
        for verdict, other in zip(verdicts, whole, strict=True):
            assert verdict.status == "partial"
            assert verdict.flagged is (True if other.flagged else None)
            assert verdict.label == (other.label if other.flagged else None)
            assert "cut off at 1 s" in verdict.error.message
            assert verdict.decided_by == other.decided_by


def test_bad_files_do_not_stop_the_rest(routed, videos, tmp_path):
    lens = routed(0.0)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    paths = [videos[0], tmp_path / "none.mp4", videos[1], tmp_path / "empty.mp4"]
    paths += [tmp_path / "text.mp4", tmp_path, videos[2]]
    found = [m.verdict for m in lens.moderate_many(paths)]
    assert [v.video for v in found] == [str(p) for p in paths]
    statuses = [v.status for v in found]
    assert statuses == [
        "ok",
        "video_error",
        "ok",
        "video_error",
        "video_error",
        "video_error",
        "ok",
    ]
    assert [found[i].error.code for i in (1, 3, 5)] == ["not_found", "empty_file", "is_directory"]
    assert all(v.flagged is None for v in found if v.status == "video_error")
    assert all(v.timing["decode"] >= 0 for v in found)


@pytest.mark.parametrize("stage", ["embed", "deliberate", "caption"])
def test_a_model_that_fails_on_one_clip_hits_only_that_clip(routed, videos, monkeypatch, stage):
    lens = routed(1.01)
    bad = lens.moderate(videos[2]).clip.frames
    if stage == "embed":
        target, name, at = lens.screener.vlm, "encode_videos", lambda a: a[0]
    elif stage == "caption":
        target, name, at = lens.captioner, "describe", lambda a: [c.frames for c in a[0]]
    else:
        target, name, at = lens.deliberator, "program", None
    original = getattr(target, name)
    calls = Counter()

    def fails(*args, **kwargs):
        calls["n"] += 1
        hit = calls["n"] == 3 if at is None else any(np.array_equal(f, bad) for f in at(args))
        if hit:
            raise RuntimeError("out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, fails)
    found = [m.verdict for m in lens.moderate_many(videos)]
    assert [v.status for v in found] == ["ok", "ok", "model_error", "ok", "ok", "ok"]
    assert found[2].error.code == "RuntimeError"
    assert "out of memory" in found[2].error.message
    assert found[2].flagged is None
    assert found[2].sha256
    monkeypatch.undo()
    again = [m.verdict for m in routed(1.01).moderate_many(videos)]
    for one, other in zip(found, again, strict=True):
        if one.status == "ok":
            assert one.description == other.description
            for a, b in zip(one.categories, other.categories, strict=True):
                assert a.score == pytest.approx(b.score, abs=1e-3)


def test_weights_that_are_no_numbers_are_a_model_error(routed, videos, monkeypatch):
    lens = routed(0.0)
    norm = lens.screener.vlm.model.model.language_model.norm
    before = norm.weight.detach().clone()
    try:
        with torch.no_grad():
            norm.weight.fill_(float("nan"))
        verdict = lens.moderate(videos[0]).verdict
    finally:
        with torch.no_grad():
            norm.weight.copy_(before)
    assert (verdict.status, verdict.flagged) == ("model_error", None)
    assert "not finite" in verdict.error.message


def test_paths_are_consumed_lazily_and_results_come_early(routed, videos):
    lens = routed(0.0)
    taken = Counter()

    def paths():
        for i in range(100):
            taken["n"] += 1
            yield videos[i % len(videos)]

    stream = lens.moderate_many(paths())
    for done in range(1, 8):
        assert next(stream).verdict.status == "ok"
        assert taken["n"] <= done + UNDER_WAY
    stream.close()
    assert taken["n"] < 40
    assert lens.moderate(videos[0]).verdict.status == "ok"
    assert list(lens.moderate_many([])) == []


def test_a_slow_file_holds_up_none_before_it(routed, videos, monkeypatch):
    lens = routed(0.0)
    read, gate = VideoReader.read, threading.Event()

    def slow(self, path):
        if path == str(videos[3]):
            assert gate.wait(60)
        return read(self, path)

    monkeypatch.setattr(VideoReader, "read", slow)
    stream = lens.moderate_many(videos)
    early = [next(stream).verdict.video for _ in range(3)]
    assert early == [str(p) for p in videos[:3]]
    gate.set()
    assert [m.verdict.video for m in stream] == [str(p) for p in videos[3:]]


def test_several_processes_decode_at_the_same_time(routed, videos, monkeypatch):
    """Each file waits here until another is being read too; with one process none would ever be."""
    lens = routed(0.0)
    wanted = [m.verdict.sha256 for m in lens.moderate_many(videos)]
    both = threading.Barrier(2, timeout=30)
    real = VideoReader.read

    def together(self, path):
        both.wait()
        return real(self, path)

    monkeypatch.setattr(VideoReader, "read", together)
    parts = {name: getattr(lens, name) for name in ("thresholds", "provenance")}
    with SafeLens(
        lens.screener, lens.deliberator, None, **parts, clip=ClipSettings(), decoders=2
    ) as two:
        found = [m.verdict for m in two.moderate_many(videos)]
    assert [v.status for v in found] == ["ok"] * len(videos)
    assert [v.sha256 for v in found] == wanted


def test_threads_that_share_the_system(routed, videos):
    lens = routed(1.01)

    def work(path):
        verdict = lens.moderate(path).verdict
        return verdict.label, verdict.description, [c.score for c in verdict.categories]

    serial = [work(path) for path in videos]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(work, videos))
    for one, other in zip(serial, parallel, strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], abs=1e-4)


def test_each_video_is_seen_once_and_the_policy_once_for_all(bundle_dir, videos, monkeypatch):
    """Counted with hooks while five videos are screened, captioned, deliberated and searched."""
    from safelens.vlm import VisionLanguageModel

    towers, tokens, adapters = [], [], []
    original = VisionLanguageModel.__init__

    def hooked(self, model, processor, **kwargs):
        original(self, model, processor, **kwargs)
        inner = model.model
        inner.visual.register_forward_hook(
            lambda _m, args, kw, _o: towers.append(1), with_kwargs=True
        )
        inner.language_model.embed_tokens.register_forward_hook(
            lambda _m, args, _o: tokens.extend(args[0].tolist())
        )
        adapters.append(self)

    monkeypatch.setattr(VisionLanguageModel, "__init__", hooked)
    with SafeLens.load(bundle_dir, tau=1.01, device="cpu") as lens:
        lens.screener.guard = None
        found = [lens.moderate(path) for path in videos[:5]]
    assert [m.verdict.decided_by for m in found] == ["deliberate"] * 5
    assert any(m.verdict.evidence for m in found)
    assert len(adapters) == 1
    assert len(towers) == 5
    vlm = lens.screener.vlm
    rules = vlm.ids(lens.screener.parts.head).tolist()
    assert sum(row[: len(rules)] == rules for row in tokens) == 1
    seen = Counter(token for row in tokens for token in row)
    videos_read = [
        v
        for m in found
        for v in vlm.encode_videos([m.clip.frames], [m.clip.timestamps])[0].ids.tolist()
        if v == vlm.model.config.video_token_id
    ]
    assert seen[vlm.model.config.video_token_id] == len(videos_read)


def test_a_bundle_of_two_models(make_bundle, small_vlm, tmp_path, videos):
    model, processor = small_vlm(seed=9)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    folder = make_bundle(
        more={"reasoner": tmp_path / "other"}, deliberate={"model": "reasoner"}, tau=1.01
    )
    with SafeLens.load(folder, device="cpu") as lens:
        lens.screener.guard = None
        assert lens.deliberator.vlm is not lens.screener.vlm
        verdict = lens.moderate(videos[0]).verdict
        clip = lens.moderate(videos[0]).clip
        assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
        s1 = lens.screener.screen([clip])[0]
        context = lens.deliberator.read_video(clip)
        alone = lens.deliberator.deliberate(context, verdict.captions, s1.scores)
        assert [c.score for c in verdict.categories] == pytest.approx(
            list(alone.scores.values()), abs=1e-4
        )
        if not verdict.evidence:
            assert verdict.cost.prompt_tokens == s1.spent.prompt + context.spent.prompt
        assert verdict.cost.generated_tokens == context.spent.generated
        assert verdict.cost.prompt_tokens > context.spent.prompt


def test_video_first(make_bundle, videos):
    folder = make_bundle(layout="video_first", screen={"domain": None}, tau=1.01)
    with SafeLens.load(folder, device="cpu") as lens:
        verdict = lens.moderate(videos[1]).verdict
    assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
    assert verdict.provenance.layout == "video_first"


@pytest.mark.parametrize("with_captioner", [True, False])
def test_zero_shot(vlm_dir, captioner_dir, videos, policy, with_captioner):
    captioner = captioner_dir if with_captioner else None
    with SafeLens.zero_shot(vlm_dir, captioner=captioner, tau=1.01, device="cpu") as lens:
        lens.deliberator.max_new_tokens = 6
        found = lens.moderate(videos[0])
        verdict = found.verdict
        assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
        assert len(verdict.captions) == (len(found.clip.frames) if with_captioner else 0)
        assert ("caption" in verdict.timing) == with_captioner
        assert verdict.provenance.bundle == f"zero-shot {vlm_dir}"
        assert verdict.provenance.bundle_sha256 is None
        assert verdict.in_domain is None
        lens.thresholds = Thresholds(0.0)
        assert lens.moderate(videos[0]).verdict.decided_by == "screen"
        assert parse_response(policy, "GUARDRAIL: {}").flags.keys() == {
            c.id for c in verdict.categories
        }


def test_loads_and_runs_without_a_network(bundle_dir, videos, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with SafeLens.load(bundle_dir, device="cpu") as lens:
        assert lens.moderate(videos[0]).verdict.status in ("ok", "out_of_domain")


def test_a_policy_of_ones_own(bundle_dir, tmp_path, policy):
    own = policy.to_yaml().replace("Core Value", "Value")
    (tmp_path / "own.yaml").write_text(own.replace(policy.version, policy.version))
    with SafeLens.load(bundle_dir, policy=tmp_path / "own.yaml", device="cpu") as lens:
        assert lens.policy == Policy.load(tmp_path / "own.yaml")


def test_parts_of_another_model_are_refused(bundle_dir, tmp_path, small_vlm):
    folder = tmp_path / "b"
    shutil.copytree(bundle_dir, folder)
    model, _ = small_vlm(hidden_size=96)
    model.save_pretrained(folder / "model")
    settings = Bundle.load(bundle_dir).settings.model_dump(exclude={"files", "format"})
    write_bundle(folder, settings)
    with pytest.raises(
        BundleError, match="reads states of width 64, but the model 'model' gives 96"
    ):
        SafeLens.load(folder, device="cpu")
    settings["screen"]["probe"] = None
    shutil.rmtree(folder / "probe")
    write_bundle(folder, settings)
    with pytest.raises(BundleError, match="reads 164 features"):
        SafeLens.load(folder, device="cpu")
