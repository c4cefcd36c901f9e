import numpy as np
import pytest
import torch

from safelens.curate.crossfit import cross_fitted_scores, divide, groups_of, held_out_scores
from safelens.data.records import Record
from safelens.probe import ProbeConfig, fit_probe
from safelens.train.states import States

LABELS = ("a", "b", "safe")
SHORT = {"steps": 4, "lr": 1e-2, "seed": 7}


def states_of(labels, *, shift=1.0):
    """States whose mean tells the class, with noise."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor(labels)
    question = torch.randn(len(labels), 12, 6, generator=random)
    question[:, :, 0] += shift * labels[:, None]
    ids = [f"r{i}" for i in range(len(labels))]
    return States(ids, question.half(), np.zeros((len(ids), 1)), labels, [f"{i}" for i in ids])


def record(name, **fields):
    return Record(id=name, video=f"{name}.mp4", labels=(), source="test", **fields)


@pytest.fixture(scope="module")
def grouped():
    """36 records of 3 classes in groups of one to three, which mix classes."""
    states = states_of([i % 3 for i in range(36)])
    groups = [0, 0, 0, 1, 1, 2, 2, *range(3, 32)]
    return states, groups, cross_fitted_scores(states, groups, LABELS, folds=4, **SHORT)


def test_no_record_is_scored_by_a_probe_that_saw_it_or_its_group(grouped):
    states, groups, found = grouped
    assert len(found.fitted_on) == 4
    assert found.scores.isfinite().all()
    for row in range(len(states.ids)):
        seen = {groups[i] for i in found.fitted_on[found.scored_by[row]].tolist()}
        assert groups[row] not in seen


def test_scores_are_those_of_a_plain_loop(grouped):
    states, _, found = grouped
    config = ProbeConfig(input_dim=6, labels=LABELS)
    right = torch.zeros(36)
    for k in range(4):
        rest = torch.tensor([i for i in range(36) if found.scored_by[i] != k])
        assert torch.equal(found.fitted_on[k], rest)
        probe = fit_probe(
            states.question[rest], None, states.labels[rest], config, steps=4, lr=1e-2, seed=7 + k
        ).probe
        mine = torch.tensor([i for i in range(36) if found.scored_by[i] == k])
        scores = probe.predict(states.question[mine])
        assert torch.equal(found.scores[mine], scores)
        right[mine] = (scores.argmax(1) == states.labels[mine]).float()
        by_class = [right[mine][states.labels[mine] == c].mean() for c in range(3)]
        assert found.accuracies[k] == pytest.approx(float(sum(by_class) / 3), abs=1e-6)
    overall = sum(float(right[states.labels == c].mean()) for c in range(3)) / 3
    assert found.accuracy == pytest.approx(overall, abs=1e-6)


def test_folds_are_balanced_and_groups_whole():
    random = np.random.default_rng(3)
    labels = torch.tensor(random.choice(4, 400, p=[0.6, 0.3, 0.08, 0.02]))
    groups = random.integers(0, 300, 400).tolist()
    every = torch.ones(400, dtype=torch.bool)
    for shares in ([0.2] * 5, [0.3, 0.7]):
        part = divide(labels, groups, shares, every, seed=1)
        assert all(len({int(part[i]) for i in range(400) if groups[i] == g}) <= 1 for g in groups)
        for c in range(4):
            counts = torch.bincount(part[labels == c], minlength=len(shares))
            aims = torch.tensor(shares) * (labels == c).sum()
            assert (counts - aims).abs().max() <= 3
        assert torch.equal(part, divide(labels, groups, shares, every, seed=1))
    assert not torch.equal(part, divide(labels, groups, shares, every, seed=2))


def test_held_out_scores_only_what_its_probe_did_not_see():
    states = states_of([i % 3 for i in range(30)])
    groups = [i // 2 for i in range(30)]
    trainable = torch.arange(30) % 10 != 9
    found = held_out_scores(states, groups, LABELS, share=0.4, trainable=trainable, **SHORT)
    [fitted] = found.fitted_on
    assert 0.3 <= len(fitted) / 27 <= 0.5
    seen = {groups[i] for i in fitted.tolist()}
    for row in range(30):
        assert (found.scored_by[row] == -1) == (groups[row] in seen)
        assert bool(found.scores[row].isnan().all()) == (groups[row] in seen)
    assert not set(fitted.tolist()) & set((~trainable).nonzero()[:, 0].tolist())


def test_the_undecided_and_other_parts_are_scored_and_never_trained_on():
    labels = [i % 3 for i in range(24)]
    labels[5] = labels[11] = -1
    trainable = torch.ones(24, dtype=torch.bool)
    trainable[:3] = False
    states = states_of(labels)
    found = cross_fitted_scores(
        states, list(range(24)), LABELS, folds=3, trainable=trainable, **SHORT
    )
    assert found.scores.isfinite().all()
    fitted = torch.cat(found.fitted_on).unique().tolist()
    assert not {0, 1, 2, 5, 11} & set(fitted)
    assert len(fitted) == 19


def test_records_that_belong_together():
    records = [
        record("a", group="film"),
        record("b"),
        record("c", group="film"),
        record("d", twin_of="b"),
        record("e"),
        record("f", group="other"),
        record("g"),
    ]
    digests = ["1", "2", "3", "4", "5", "5", "3"]  # e and f are one file, so are c and g
    assert groups_of(records, digests) == [0, 1, 0, 1, 2, 2, 0]


def test_what_cannot_be_done_is_named():
    states = states_of([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    alone = list(range(10))
    with pytest.raises(ValueError, match="class 'b' has 2 records in 2 groups, and 3 parts"):
        cross_fitted_scores(states, alone, LABELS, folds=3, **SHORT)
    with pytest.raises(ValueError, match="class 'b' has 1 records to fit a probe on"):
        cross_fitted_scores(states, alone, LABELS, folds=2, **SHORT)
    together = [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="class 'b' has 2 records in 1 groups"):
        held_out_scores(states, together, LABELS, **SHORT)
    states.question[3, 0, 0] = torch.nan
    states.question[8, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="states of r3, r8 are no numbers"):
        cross_fitted_scores(states, alone, LABELS, folds=2, **SHORT)
    with pytest.raises(ValueError, match="expected 2 or more"):
        cross_fitted_scores(states_of([0, 1]), [0, 1], LABELS, folds=1)
