"""Stored passes: exact against all gradients at once, the same after any interruption or division."""

from dataclasses import replace

import pytest
import torch

from safelens.curate import passes
from safelens.curate.filtering import keep
from safelens.curate.gradients import GradientCollector
from safelens.curate.influence import Whitening
from safelens.curate.influence_work import InfluenceWork, run_passes
from safelens.curate.passes import Collection, CurationError, InfluenceStore, Share, Unusable
from safelens.curate.projection import FactoredProjection
from safelens.curate.scores import DAMPING, training_scores, validation_scores, write_matrix
from safelens.data.records import Record
from safelens.engine.cluster import EngineError
from safelens.engine.mapping import Died
from safelens.train.embedder import Turns
from safelens.train.sequences import Example

LABELS = ("violence", "sexual", "safe")


class Clips:
    """Drawn clips with labels; some may fail."""

    def __init__(self, vlm, policy, make_clip, first, count, broken=()):
        turns = Turns(vlm, policy)
        clips = [make_clip(first + i, frames=2) for i in range(count)]
        videos = vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])
        self.ids = [f"clip-{first + i}" for i in range(count)]
        self.labels = [i % len(LABELS) for i in range(count)]
        names = [() if LABELS[k] == "safe" else (LABELS[k],) for k in self.labels]
        self.found = [Example(v, (turns.screening(n),)) for v, n in zip(videos, names, strict=True)]
        self.broken = set(broken)
        self.asked: list[int] = []

    def example(self, row):
        self.asked.append(row)
        if row in self.broken:
            raise Unusable(f"{self.ids[row]}: cannot be decoded")
        return self.found[row]


@pytest.fixture(scope="module")
def world(vlm, policy, make_clip):
    collector = GradientCollector(vlm, Turns(vlm, policy).layout.head)
    project = FactoredProjection(collector.layers, rank=4, seed=1)
    train = Clips(vlm, policy, make_clip, 0, 14, broken=[5])
    val = Clips(vlm, policy, make_clip, 50, 9)
    return collector, project, train, val


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", 4)


def collected(world, folder, share=Share()):
    collector, project, train, val = world
    work = Collection(collector, project, InfluenceStore(folder, {"seed": 1}), 3, share, batch=3)
    work.validation_pass(val)
    return work, train


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "CHUNK", 4)
        work, train = collected(world, tmp_path_factory.mktemp("influence"))
        work.training_pass(train, work.validation_means())
    return work.store


def gradients_of(collector, samples):
    rows = [i for i in range(len(samples.ids)) if i not in samples.broken]
    found = [collector([samples.found[i]]) for i in rows]
    flat = [torch.cat([w.flatten() for w in f.weights()]) for f in found]
    return torch.stack(flat).double(), torch.tensor([samples.labels[i] for i in rows])


def test_stored_influence_and_decisions_equal_the_full_matrix(world, finished):
    collector, _, train, val = world
    u, labels = gradients_of(collector, train)
    v, val_labels = gradients_of(collector, val)
    matrix = u @ v.T
    own = torch.stack([matrix[i, val_labels == c].mean() for i, c in enumerate(labels)])
    found = training_scores([finished], [1.0], 3)
    usable = found.usable
    scale = matrix.abs().max()
    assert ((found.averages["tracin"].own[usable] - own).abs() / scale).max() < 1e-4
    assert ((found.averages["tracin"].all[usable] - matrix.mean(1)).abs() / scale).max() < 1e-4
    expected = (own > 0) & (matrix.mean(1) >= 0)
    assert torch.equal(
        keep(found.averages["tracin"], found.least("tracin", 0.05))[usable], expected
    )


def test_an_unusable_sample_is_named_and_never_kept(finished):
    found = training_scores([finished], [1.0], 3)
    assert [i for i, e in enumerate(found.errors) if e] == [5]
    assert "clip-5: cannot be decoded" in found.errors[5]
    for name, score in found.averages.items():
        assert not bool(keep(score, found.least(name, 0.05))[5])
        assert torch.isfinite(score.own[found.usable]).all()


def test_whitened_scores_are_those_of_the_stored_projections(world, finished, tmp_path):
    collector, project, train, val = world
    usable = [i for i in range(14) if i != 5]
    z = torch.cat([project(collector([train.found[i]])) for i in usable]).double()
    zv = torch.cat([project(collector([e])) for e in val.found]).double()
    whiten = Whitening(z.T @ z, len(z), DAMPING)
    matrix = whiten(z) @ whiten(zv).T
    found = training_scores([finished], [1.0], 3)
    torch.testing.assert_close(
        found.averages["whitened"].all[usable], (matrix**3).mean(1), rtol=1e-3, atol=1e-4
    )
    labels = torch.tensor(val.labels)
    among = (whiten(zv) @ whiten(zv).T) ** 3
    for row, label in enumerate(labels):
        others = torch.arange(len(labels)) != row
        same = others & (labels == label)
        assert found.clean["whitened"].all[row] == pytest.approx(
            float(among[row, others].mean()), abs=1e-5
        )
        assert found.clean["whitened"].own[row] == pytest.approx(
            float(among[row, same].mean()), abs=1e-5
        )
    write_matrix(finished, tmp_path / "m.npy", "whitened")
    import numpy as np

    stored = torch.from_numpy(np.load(tmp_path / "m.npy")).double()
    assert stored.shape == (14, 9)
    assert torch.isnan(stored[5]).all()
    torch.testing.assert_close(stored[usable], matrix**3, rtol=1e-3, atol=1e-4)
    suspects = validation_scores(finished, 3)
    torch.testing.assert_close(
        suspects.averages["whitened"].all, (matrix**3).mean(0), rtol=1e-3, atol=1e-4
    )


def table(store, part):
    return store.rows(part).to_pylist()


def test_interrupted_anywhere_and_resumed_gives_the_same(world, finished, tmp_path):
    collector, project, train, val = world

    class Killed(Exception):
        pass

    def dying(samples, after):
        class Dying:
            ids, labels = samples.ids, samples.labels

            def example(self, row):
                if row == after:
                    raise Killed
                return samples.example(row)

        return Dying()

    store = InfluenceStore(tmp_path / "s", {"seed": 1})
    work = Collection(collector, project, store, 3, batch=3)
    for after in (2, 7):
        with pytest.raises(Killed):
            work.validation_pass(dying(val, after))
    val.asked.clear()
    work.validation_pass(val)
    assert min(val.asked) == 4, "the first chunk was not run again"
    means = work.validation_means()
    with pytest.raises(Killed):
        work.training_pass(dying(train, 9), means)
    train.asked.clear()
    work.training_pass(train, means)
    assert min(train.asked) == 8
    assert table(store, "train") == table(finished, "train")
    assert table(store, "val") == table(finished, "val")


def test_processes_together_give_what_one_gives(world, finished, tmp_path):
    shares = [Share(rank, 2) for rank in range(2)]
    works = [collected(world, tmp_path / "s", share) for share in shares]
    for work, train in works:
        work.training_pass(train, work.validation_means())
    mine, theirs = (training_scores([s], [1.0], 3) for s in (works[0][0].store, finished))
    assert mine.ids == theirs.ids
    for score, found in mine.averages.items():
        torch.testing.assert_close(found.own, theirs.averages[score].own, equal_nan=True)


def test_checkpoints_add_up(finished):
    one = training_scores([finished], [0.5], 3)
    two = training_scores([finished, finished], [0.5, 0.25], 3)
    torch.testing.assert_close(
        two.averages["tracin"].own, 1.5 * one.averages["tracin"].own, equal_nan=True
    )
    torch.testing.assert_close(
        two.averages["whitened"].own, one.averages["whitened"].own, equal_nan=True
    )


@pytest.mark.parametrize("other", [{"first": 51}, {"broken": [3]}], ids=["others", "unusable"])
def test_checkpoints_of_other_validation_samples_are_refused(
    world, finished, vlm, policy, make_clip, tmp_path, other
):
    collector, project, train, _ = world
    first, broken = other.get("first", 50), other.get("broken", [])
    val = Clips(vlm, policy, make_clip, first, 9, broken=broken)
    work, _ = collected((collector, project, train, val), tmp_path / "s")
    work.training_pass(train, work.validation_means())
    with pytest.raises(CurationError, match="other samples, or could not use the same"):
        training_scores([finished, work.store], [0.5, 0.25], 3)


def test_a_process_that_did_not_finish_is_named(world, tmp_path):
    work, _ = collected(world, tmp_path / "s", Share(0, 2))
    with pytest.raises(CurationError, match="val-sums-1-of-2"):
        work.validation_means()


def test_a_class_without_validation_samples_is_an_error(world, tmp_path):
    collector, project, train, val = world
    store = InfluenceStore(tmp_path / "s", {})
    work = Collection(collector, project, store, 3, batch=3)

    class OnlyTwo:
        ids, labels = val.ids[:2], val.labels[:2]
        example = val.example

    work.validation_pass(OnlyTwo())
    work.training_pass(train, work.validation_means())
    with pytest.raises(ValueError, match=r"no validation sample of class \[2\]"):
        training_scores([store], [1.0], 3)


def test_another_runs_folder_is_refused(tmp_path):
    InfluenceStore(tmp_path / "s", {"seed": 1, "model": "a"})
    InfluenceStore(tmp_path / "s", {"seed": 1, "model": "a"})
    with pytest.raises(CurationError, match="other settings \\(model\\)"):
        InfluenceStore(tmp_path / "s", {"seed": 1, "model": "b"})
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "x").write_text("")
    with pytest.raises(CurationError, match="not empty"):
        InfluenceStore(tmp_path / "t", {})


def test_a_gradient_that_is_no_number_is_reported(world, tmp_path):
    collector, project, _, val = world

    class Spoiled:
        layers, dimension = collector.layers, collector.dimension

        def __call__(self, batch):
            found = collector(batch)
            losses = found.losses.clone()
            losses[0] = float("nan")
            return replace(found, losses=losses)

    work = Collection(Spoiled(), project, InfluenceStore(tmp_path / "s", {}), 3, batch=3)
    work.validation_pass(val)
    errors = [row["error"] for row in table(work.store, "val")]
    assert errors[0] == "its gradient is not a number: check the model and its type"
    assert errors[1] is None


def test_a_chunk_that_kills_its_processes_is_named(policy, tmp_path):
    InfluenceStore(tmp_path, {})
    work = InfluenceWork("model", policy, tmp_path, {}, 2)
    some = [Record(id=str(i), video=f"{i}.mp4", labels=(), source="test") for i in range(3)]

    def run(blocks):
        for [chunk] in blocks:
            assert (chunk.part, chunk.records, chunk.shares) == ("val", some, 1)
            yield chunk, Died("gone")

    done = []
    with pytest.raises(EngineError, match=r"had val chunk 0 died \(gone\); .* again"):
        run_passes(work, run, (("val", some), ("train", some)), done.append, done.append)
    assert done == ["val"]
