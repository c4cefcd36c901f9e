"""Small clips with planted movement: folds keep sources whole, features are sound, movement is found."""

import sys

import av
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks import fight_learned, fight_motion, fights
from benchmarks.fight_compare import compare, over_repeats
from benchmarks.fight_data import NoVideos, data_stages, grey_clips, is_fight, records_of
from benchmarks.fight_folds import Features, chosen, forest, grouped_folds, logistic, probe
from recipes.stages import run

SOURCES, A_SOURCE = 6, 4


def drawn(fight: bool, rng: np.random.Generator, frames: int) -> np.ndarray:
    """Two bright squares on a place of its own: in a fight they jump about, else they drift together."""
    place = rng.integers(40, 120, (8, 12)).repeat(8, 0).repeat(8, 1)
    at = rng.uniform(16, 40, (2, 2))
    out = []
    for _ in range(frames):
        at += rng.uniform(-5, 5, (2, 2)) if fight else rng.uniform(0, 0.4, (1, 2))
        at = at.clip(4, 50)
        picture = place.copy()
        for down, right in at.astype(int):
            picture[down : down + 10, right : right + 10] = 230
        out.append(picture)
    return np.stack(out).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of two seconds, both classes from every source."""
    found = tmp_path_factory.mktemp("fights")
    rng = np.random.default_rng(0)
    rows = ["file,label,source_group"]
    for i in range(SOURCES * A_SOURCE):
        fight = i % 2 == 0
        with av.open(str(found / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=12)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for picture in drawn(fight, rng, 13 if i == 3 else 24):
                frame = av.VideoFrame.from_ndarray(picture, format="gray")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        rows.append(f"{i}.mp4,{'fight' if fight else 'noFight'},source{i // A_SOURCE}")
    (found / "labels.csv").write_text("\n".join(rows) + "\n")
    return found


@pytest.fixture(scope="module")
def data(folder, tmp_path_factory):
    """Grey clips, features, labels and sources."""
    stages = data_stages(folder)
    work = tmp_path_factory.mktemp("work")
    frames, motion = run(stages["frames"], stages["motion"], root=work)
    records = records_of(folder)
    with np.load(motion / "motion.npz") as found:
        features = Features.of_steps(found["steps"], found["mask"])
    return grey_clips(frames), features, is_fight(records), [r.group for r in records]


def test_no_fold_divides_a_source(data):
    _, _, labels, groups = data
    for seed in range(5):
        tested = []
        for train, test in grouped_folds(labels, groups, seed):
            assert not {groups[i] for i in train} & {groups[i] for i in test}
            tested += test.tolist()
        assert sorted(tested) == list(range(len(labels)))
    with pytest.raises(ValueError, match="1 sources"):
        grouped_folds(labels, ["one"] * len(labels), 0)


@pytest.mark.shared
def test_no_fold_divides_a_source_of_the_real_clips(shared_videos):
    records = records_of(shared_videos / "fights")
    groups = [r.group for r in records]
    for train, test in grouped_folds(is_fight(records), groups, 0):
        assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_features_are_finite_and_padding_is_masked(data):
    clips, features, labels, _ = data
    steps = fight_motion.STEPS - 1
    assert features.steps.shape == (len(labels), steps, fight_motion.MOTION)
    assert features.rows.shape == (len(labels), 5 * fight_motion.MOTION)
    assert np.isfinite(features.steps).all()
    assert np.isfinite(features.rows).all()
    assert features.mask[3].sum() < features.mask[0].sum() == steps
    assert not features.steps[3, ~features.mask[3]].any()
    assert all(np.isfinite(fight_motion.plain_differences(clip)).all() for clip in clips)


def test_block_flow_finds_a_shift():
    rng = np.random.default_rng(1)
    wide = torch.from_numpy(rng.integers(0, 255, (80, 120)).astype(np.float32))
    frames = torch.stack([wide[8 - 2 * t : 72 - 2 * t, 10 + 3 * t : 106 + 3 * t] for t in range(3)])
    flow, cost, still = fight_motion.block_flow(frames)
    inner = flow[:, 1:-1, 1:-1].flatten(0, 2)
    assert (inner == torch.tensor([2.0, -3.0])).all()
    assert cost[:, 1:-1, 1:-1].abs().max() == 0
    assert still.min() > 10


def test_planted_movement_is_found(data):
    _, x, labels, groups = data
    for head in (logistic, forest, probe):
        scores = np.zeros(len(labels))
        for train, test in grouped_folds(labels, groups, 0, folds=3):
            scores[test] = head(x, labels, train, test, 0)
        assert roc_auc_score(labels, scores) > 0.9, head


def test_the_choice_takes_what_tells_the_classes_apart(data):
    _, x, labels, groups = data
    noise = Features(np.random.default_rng(0).normal(size=(len(labels), 5)))
    options = {"noise": (noise, logistic), "motion": (x, logistic)}
    assert chosen(options, labels, groups, np.arange(len(labels)), 0) == "motion"


@pytest.mark.parametrize("embedder", fights.EMBEDDERS)
def test_embedders_learn_from_training_clips_alone(data, embedder):
    """What the other clips show changes nothing of what is learned."""
    clips = data[0][:6]
    train = np.arange(4)
    rng = np.random.default_rng(0)
    other = [
        *clips[:4],
        *(
            fight_motion.Grey(rng.integers(0, 255, c.frames.shape, np.uint8), c.times)
            for c in clips[4:]
        ),
    ]
    (first, mask), (second, _) = (
        next(fights.EMBEDDERS[embedder](some, [train], 0)) for some in (clips, other)
    )
    assert first.shape[:2] == mask.shape == (6, fight_learned.WINDOWS)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first[:4], second[:4])
    assert (first[4:] != second[4:]).any()


def test_figures_and_differences():
    labels = np.array([1, 0] * 10)
    groups = [str(i // 4) for i in range(20)]
    right = np.stack([np.where(labels, 0.9, 0.1)] * 2)
    chance = np.full((2, 20), 0.5)
    assert over_repeats(right, labels, groups)["auroc"]["mean"] == 1
    assert over_repeats(chance, labels, groups)["within_source_auroc"]["mean"] == 0.5
    gap = compare(right, chance, labels, groups)
    assert gap["accuracy"]["mean"] == gap["auroc"]["low"] == gap["auroc"]["high"] == 0.5
    # Sources that differ help over all pairs, and not within sources.
    by_source = np.array([[int(g) / 10 for g in groups]])
    assert over_repeats(by_source, labels, groups)["within_source_auroc"]["mean"] == 0.5


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    with pytest.raises(NoVideos, match="source_group"):
        records_of(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fights", "--videos", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"labels\.csv: missing"):
        fights.main()
