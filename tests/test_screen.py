import dataclasses

import numpy as np
import pytest
import torch

from safelens import prompts
from safelens.domain import DomainGuard
from safelens.domain_features import domain_features, domain_width
from safelens.policy import Category, Policy, Rule
from safelens.probe import RollingAttentionProbe
from safelens.reading import SequentialPrompt, layout_of
from safelens.screen import (
    LAST_TOKENS,
    LabelReader,
    ProbeReader,
    Screener,
    stretches,
)
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def probe(probe_dir):
    return RollingAttentionProbe.load(probe_dir)


@pytest.fixture(scope="module")
def screener(vlm, policy, probe, guard_file):
    guard = DomainGuard.load(guard_file)
    return Screener(vlm, policy, reader=ProbeReader(probe, 1.5), guard=guard)


@torch.no_grad()
def whole_run(vlm, text, clip):
    """Hidden states of one uncached run over head, video and what follows."""
    head, _, rest = text.partition("<video>")
    (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
    ids = torch.cat([vlm.ids(head), video.ids, vlm.ids(rest)])
    types = (ids == vlm.model.config.video_token_id).int() * 2
    vlm.model.model.rope_deltas = None
    return (
        vlm.model.model(
            input_ids=ids[None],
            mm_token_type_ids=types[None],
            pixel_values_videos=video.pixels,
            video_grid_thw=video.grid,
            use_cache=False,
        ).last_hidden_state[0],
        len(vlm.ids(head)),
        video,
    )


@pytest.mark.parametrize("layout", ["policy_first", "video_first"])
def test_the_probe_reads_the_questions_last_tokens(vlm, policy, probe, clips, layout):
    screener = Screener(vlm, policy, reader=ProbeReader(probe, 2.0), layout=layout)
    parts = layout_of(vlm, policy, layout)
    rules = prompts.policy_prompt(policy)
    assert (rules in parts.head) == (layout == "policy_first")
    assert (rules in parts.tail) == (layout == "video_first")
    for clip, s1 in zip(clips[:3], screener.screen(clips[:3]), strict=True):
        hidden, _, _ = whole_run(vlm, f"{parts.head}<video>{parts.tail}", clip)
        length = min(LAST_TOKENS, len(vlm.ids(parts.tail)))
        with torch.no_grad():
            wanted = (probe(hidden[None, -length:])[0] / 2).softmax(-1)
        np.testing.assert_allclose(list(s1.scores.values()), wanted.numpy(), atol=1e-4)
        assert tuple(s1.scores) == policy.labels
        assert s1.label == policy.labels[int(wanted.argmax())]
        assert s1.confidence == max(s1.scores.values())
        assert s1.familiar
        assert s1.in_domain is None


def _colours(patches, steps):
    """Brightness, saturation and palette of every fourth pixel of a patch, by plain counting."""
    rgb = (patches[..., ::4, ::4] + 1) / 2
    rgb = rgb.transpose(0, 2, 3, 4, 1).reshape(steps, -1, 3)
    palettes = []
    for step in rgb:
        cells = np.minimum((step * 6).astype(int), 5)
        _, counts = np.unique(cells, axis=0, return_counts=True)
        p = np.sort(counts)[::-1] / len(cells)
        palettes.append([-(p * np.log(p)).sum(), *(p[:n].sum() for n in (1, 2, 4, 8))])
    return np.concatenate(
        [
            np.quantile(rgb.mean(-1), (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)),
            np.quantile(rgb.max(-1) - rgb.min(-1), (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)),
            np.mean(palettes, axis=0),
        ]
    )


def test_domain_features_and_guard(screener, vlm, clips):
    screened = screener.screen(clips)
    for row, clip in enumerate(clips):
        (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
        with torch.no_grad():
            seen = vlm.model.model.visual(video.pixels, grid_thw=video.grid).pooler_output.numpy()
        patches = video.pixels.numpy().astype(float).reshape(-1, 3, 2, 8, 8)
        contrast = patches.std((3, 4), ddof=1).mean((1, 2))
        change = np.abs(patches[:, :, 1] - patches[:, :, 0]).mean((1, 2, 3))
        shares = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
        wanted = [
            seen.mean(0),
            seen.std(0),
            np.quantile(contrast, shares),
            np.quantile(change, shares),
        ]
        wanted += [patches.mean((0, 2, 3, 4)), patches.std((0, 2, 3, 4), ddof=1)]
        wanted.append(_colours(patches, int(video.grid[0, 0])))
        found = domain_features(screened[row].prefilled, row, vlm.patch_shape)
        np.testing.assert_allclose(found, np.concatenate(wanted), atol=2e-4)
        assert len(found) == domain_width(vlm.hidden_size)
        assert screened[row].familiar == bool(screener.guard.accepts(found))
        assert 0 <= screened[row].in_domain <= 1
    assert any(s.familiar for s in screened)
    noise = np.random.default_rng(1).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    strange = screener.screen([dataclasses.replace(clips[0], frames=noise)])[0]
    assert not strange.familiar
    tiny = dataclasses.replace(clips[5], frames=np.zeros((2, 4, 4, 3), np.uint8))
    assert np.isfinite(
        domain_features(screener.screen([tiny])[0].prefilled, 0, vlm.patch_shape)
    ).all()


def test_label_reader_equals_separate_uncached_runs(vlm, policy, clips):
    screener = Screener(vlm, policy)
    parts = screener.parts
    true, false = int(vlm.ids(prompts.TRUE)[0]), int(vlm.ids(prompts.FALSE)[0])
    for clip, s1 in zip(clips[2:4], screener.screen(clips[2:4]), strict=True):
        odds = []
        for category in policy.categories:
            answer = prompts.screening_suffix() + parts.closing + prompts.category_opening(category)
            # the cache is cut between question and suffix, so their tokens are those of two texts
            (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
            context = vlm.prefill_videos(screener.head, [video], parts.tail).context(0)
            hidden = vlm.extend(context, vlm.ids(answer))
            logits = vlm.logits(hidden)[0, -1]
            odds.append(float((logits[true] - logits[false]).exp()))
        wanted = [o / (1 + sum(odds)) for o in odds] + [1 / (1 + sum(odds))]
        np.testing.assert_allclose(list(s1.scores.values()), wanted, rtol=2e-3, atol=1e-5)
        assert sum(s1.scores.values()) == pytest.approx(1, abs=1e-5)
        assert len(set(s1.scores.values())) == len(policy.labels)


def test_label_reader_equals_one_run_without_any_cache(vlm, policy, clips):
    """Of which the tokens at the cut are those of one text: a suffix that begins with a line break."""
    parts = layout_of(vlm, policy, "policy_first")
    clip, category = clips[0], policy.categories[2]
    rest = prompts.screening_suffix() + parts.closing + prompts.category_opening(category)
    head = vlm.ids(parts.head)
    (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
    ids = torch.cat([head, video.ids, vlm.ids(parts.tail), vlm.ids(rest)])
    vlm.model.model.rope_deltas = None
    with torch.no_grad():
        logits = vlm.model(
            input_ids=ids[None],
            mm_token_type_ids=(ids == vlm.model.config.video_token_id).int()[None] * 2,
            pixel_values_videos=video.pixels,
            video_grid_thw=video.grid,
        ).logits[0, -1]
    one, other = int(vlm.ids(prompts.TRUE)[0]), int(vlm.ids(prompts.FALSE)[0])
    s1 = Screener(vlm, policy).screen([clip])[0]
    odds = s1.scores[category.id] / s1.scores["safe"]
    assert np.log(odds) == pytest.approx(float(logits[one] - logits[other]), abs=1e-3)


def test_thirty_categories(vlm, clips):
    rules = (Rule("blocked", "Flag what is shown."),)
    many = tuple(Category(f"c{i}", f"Kind {i}", "Safety.", rules) for i in range(30))
    wide = Policy(id="wide", name="Wide", version="1", categories=many)
    s1 = Screener(vlm, wide).screen(clips[:1])[0]
    assert len(s1.scores) == 31
    assert sum(s1.scores.values()) == pytest.approx(1, abs=1e-5)


def test_label_answers_share_the_cache_as_copies_would_have_it(vlm, policy, clips):
    """One pass over all categories gives what a copy of the cache for each gives, and reads less."""
    reader = LabelReader(vlm, policy, SequentialPrompt(vlm, policy), rows=4)
    screened = Screener(vlm, policy).screen(clips[:1])[0]
    for context in (screened.context, screened.prefilled.moments(0)[0]):
        copied, shared = context.fork(), context.fork()
        alone = reader._copied(copied)
        together = vlm.extend_branches(shared, reader._branches)
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
        assert shared.spent.prompt < copied.spent.prompt
        assert 0 < shared.spent.flops < copied.spent.flops


def test_broken_weights_are_an_error_and_never_safe(small_vlm, policy, probe, clips):
    model = VisionLanguageModel(*small_vlm(), frame_pixels=48 * 48)
    with torch.no_grad():
        model.model.model.language_model.norm.weight.fill_(float("nan"))
    for reader in (None, ProbeReader(probe)):
        with pytest.raises(FloatingPointError, match="not finite"):
            Screener(model, policy, reader=reader).screen(clips[:1])


class Calls:
    """Counts runs of the vision tower, and tokens that the language model reads."""

    def __init__(self, vlm):
        self.towers, self.tokens = 0, []
        model = vlm.model.model
        self._hooks = [
            model.visual.register_forward_hook(self._tower),
            model.language_model.embed_tokens.register_forward_hook(self._text),
        ]

    def _tower(self, *_):
        self.towers += 1

    def _text(self, _module, args, _out):
        self.tokens.append(tuple(args[0].shape))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()


@pytest.mark.parametrize("labels", [False, True])
def test_evidence_runs_no_vision_tower(vlm, policy, probe, clips, labels):
    screener = Screener(vlm, policy, reader=None if labels else ProbeReader(probe))
    screened = screener.screen(clips[:4])
    before = screened[3].spent.flops
    with Calls(vlm) as calls:
        found = screener.evidence(screened[3], clips[3], "violence")
        more = screener.evidence(screened[3], clips[3], "abuse")
    assert calls.towers == 0
    tail = len(vlm.ids(screener.parts.tail))
    assert calls.tokens[0] == (
        4,
        tail,
    )  # seven frames are four steps, asked once for all categories
    assert all(length < 2 * tail for _, length in calls.tokens)
    assert len(calls.tokens) == (5 if labels else 1)
    assert screened[3].spent.flops > before
    for evidence in (*found, *more):
        assert 0 <= evidence.start_s <= evidence.end_s <= clips[3].timestamps[-1]
    assert {e.category for e in found} == {"violence"}
    steps = screened[3].steps
    assert np.allclose(np.sum(steps, axis=1), 1, atol=1e-5)
    assert max(e.score for e in found) == pytest.approx(
        max(row[policy.labels.index("violence")] for row in steps)
    )


def test_stretches():
    times = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = stretches([0.1, 0.8, 0.5, 0.9], times, "abuse")
    assert [(e.start_s, e.end_s, e.score) for e in found] == [(2.0, 6.0, 0.9)]
    found = stretches([0.8, 0.1, 0.4, 0.0], times, "abuse")
    assert [(e.start_s, e.end_s, e.score) for e in found] == [(0.0, 2.0, 0.8), (4.0, 6.0, 0.4)]
    (still,) = stretches([0.3], np.array([0.0, 0.0]), "abuse")
    assert (still.start_s, still.end_s) == (0.0, 0.0)
    (all_of_it,) = stretches([0.0, 0.0], np.array([0.0, 1.0, 2.5]), "abuse")
    assert (all_of_it.start_s, all_of_it.end_s) == (0.0, 2.5)
