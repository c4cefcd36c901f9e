"""SafeWorld's scenes: deterministic, truthful, and safe twins that differ only where they should."""

import re
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest

from safelens.safeworld import CLASSES, SCENARIOS, Scene, sample_scene
from safelens.safeworld.scene import _DOUBLES

MANY = [sample_scene(11, i) for i in range(1500)]


def sampled_times(scene: Scene) -> np.ndarray:
    return np.linspace(0, scene.duration_s, int(scene.duration_s) + 1)


def first(name: str, *, twin: bool = False) -> Scene:
    return next(s for s in MANY if s.truth.scenario == name and s.truth.twin is twin)


def test_same_seed_same_scene_and_pixels():
    for i in (0, 7, 23):
        a, b = sample_scene(3, i), sample_scene(3, i)
        assert a.truth == b.truth
        assert (a.duration_s, a.fps) == (b.duration_s, b.fps)
        t = a.duration_s * 0.6
        late = a.render(t, 96)
        a.render(0.0, 96)
        assert np.array_equal(late, a.render(t, 96))
        assert np.array_equal(late, b.render(t, 96))
        assert a.caption(t) == b.caption(t)
    assert sample_scene(3, 0) != sample_scene(4, 0)


def test_picture_has_the_asked_size_and_changes_with_time():
    scene = first("violence/fighting")
    for size in (64, 80, 128, 256):
        picture = scene.render(0.5, size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
    assert not np.array_equal(scene.render(0.1, 64), scene.render(scene.duration_s, 64))


def test_a_small_picture_is_the_large_one_downscaled():
    scene = first("illegal/war")
    large = scene.render(1.0, 256).reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(large - scene.render(1.0, 64)).mean() < 4


def test_times_outside_the_clip_are_clamped():
    scene = MANY[0]
    assert np.array_equal(scene.render(-1, 64), scene.render(0, 64))
    assert np.array_equal(scene.render(99, 64), scene.render(scene.duration_s, 64))


def test_scenarios_cover_every_class():
    counts = Counter(s.label for s in SCENARIOS)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) >= 3
    assert counts["safe"] >= 6
    assert len({s.name for s in SCENARIOS}) == len(SCENARIOS)
    assert {s.difficulty for s in SCENARIOS} == {"plain", "order", "context", "moment", "text"}
    assert {n.split("/")[0] for n in _DOUBLES} == set(CLASSES) - {"safe"}
    assert set(_DOUBLES) <= {s.name for s in SCENARIOS}


def test_class_mix():
    n = len(MANY)
    share = Counter(s.truth.labels[0] if s.truth.labels else "safe" for s in MANY)
    assert share["safe"] / n == pytest.approx(0.60, abs=0.04)
    for label in CLASSES[:-1]:
        assert share[label] / n == pytest.approx(0.4 / 6, abs=0.025)
    safe = [s for s in MANY if not s.truth.labels]
    assert sum(s.truth.twin for s in safe) / len(safe) == pytest.approx(5 / 6, abs=0.06)
    bad = [s for s in MANY if s.truth.labels]
    double = sum(len(s.truth.labels) == 2 for s in bad) / len(bad)
    assert double == pytest.approx(0.06, abs=0.025)
    assert {k.name for k in SCENARIOS} <= {s.truth.scenario for s in MANY}


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_can_be_forced(label):
    for i in range(20):
        labels = sample_scene(5, i, label=label).truth.labels
        assert (labels[0] if labels else "safe") == label


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="'war'; expected one of sexual"):
        sample_scene(0, 0, label="war")


def test_truth_holds_together():
    for scene in MANY:
        truth = scene.truth
        assert 2 <= scene.duration_s <= 8
        assert truth.description.endswith(".")
        assert truth.explanation.endswith(".")
        assert truth.tags
        assert (truth.interval is None) == (not truth.labels)
        assert not (truth.twin and truth.labels)
        if truth.interval:
            start, end = truth.interval
            assert 0 <= start < end <= scene.duration_s + 1e-9
            assert end - start >= 1.2
            assert any(start <= t <= end for t in sampled_times(scene)), truth
    assert 3.8 < np.mean([s.duration_s for s in MANY]) < 5.2


def test_captions_name_their_objects():
    for scene in MANY[:500]:
        for t in sampled_times(scene):
            caption = scene.caption(t)
            assert 8 <= len(caption.split()) <= 22, caption
            assert scene.objects(t)
            assert all(noun in caption for noun in scene.objects(t)), caption
            assert not re.search(r"\ba [aeiou]", caption, re.IGNORECASE), caption


def test_deciding_text_and_its_twin_have_the_same_shape():
    for scene in MANY:
        if scene.truth.difficulty == "text":
            t = scene.duration_s - 0.1
            said = re.search(r"the text ([A-Z: ]*[A-Z])", scene.caption(t)).group(1)
            twin = re.search(r"the text ([A-Z: ]*[A-Z])", scene.twin().caption(t)).group(1)
            assert said != twin
            assert [len(w) for w in said.split()] == [len(w) for w in twin.split()]


def test_twins_share_one_world():
    for scene in MANY[:300]:
        twin = scene.twin()
        if scene.truth.scenario.startswith("safe/"):
            assert twin is scene
            continue
        assert twin.truth.twin is not scene.truth.twin
        assert twin.truth.labels != scene.truth.labels
        assert twin.twin() == scene
        assert twin.duration_s == pytest.approx(scene.duration_s)
        for f in fields(Scene):
            if f.name not in ("truth", "_scripts", "duration_s"):
                assert getattr(twin, f.name) == getattr(scene, f.name)


def test_twin_differs_only_in_the_violating_element():
    scene = first("abuse/animal_abuse")
    t = scene.duration_s - 0.1
    assert np.array_equal(scene.render(0.2, 128), scene.twin().render(0.2, 128))
    differs = (scene.render(t, 128) != scene.twin().render(t, 128)).any(2)
    assert 0.01 < differs.mean() < 0.4
    assert not differs[:12].any()
    assert not differs[-8:].any()


@pytest.mark.parametrize("kind", [s for s in SCENARIOS if s.label != "safe"], ids=lambda s: s.name)
def test_a_violation_can_be_seen(kind):
    scene = first(kind.name)
    start, end = scene.truth.interval
    gaps = [
        (scene.render(t, 80) != scene.twin().render(t, 80)).any(2).mean()
        for t in np.linspace(start + 0.05, end - 0.05, 5)
    ]
    assert max(gaps) > 0.01


def test_order_scenes_show_the_same_things_in_another_order():
    scene = first("violence/fighting")

    def told(s: Scene) -> list[str]:
        return list(dict.fromkeys(s.caption(t) for t in np.linspace(0, s.duration_s, 60)))

    assert told(scene) != told(scene.twin())
    assert sorted(told(scene)) == sorted(told(scene.twin()))
