"""Influence against independent implementations of it, on a small random model."""

import pytest
import torch

from benchmarks.references import REFERENCES, Problem, autograd_gradients
from safelens.curate.filtering import keep, zero
from safelens.curate.gradients import GradientCollector
from safelens.curate.influence import ClassMeans, averages
from safelens.train.embedder import Turns
from safelens.train.sequences import Example

NAMES = ("violence", "sexual", "safe")


@pytest.fixture
def problem(vlm_dir, policy, make_clip):
    from safelens.vlm import VisionLanguageModel

    vlm = VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)  # its own: libraries rewire it
    turns = Turns(vlm, policy)
    clips = [make_clip(i, frames=2 + 2 * (i % 3)) for i in range(16)]
    videos = vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])
    found = []
    for i, video in enumerate(videos):
        name = NAMES[i % 3]
        found.append(Example(video, (turns.screening(() if name == "safe" else (name,)),)))
    collector = GradientCollector(vlm, turns.layout.head)
    return Problem(collector, turns.layout.head, vlm, found[:10], found[10:], batch=4)


def gradients(collector, examples):
    batches = [examples[i : i + 3] for i in range(0, len(examples), 3)]
    return torch.cat(
        [torch.cat([w.flatten(1) for w in collector(b).weights()], 1) for b in batches]
    )


@pytest.mark.parametrize("name", list(REFERENCES))
def test_agrees_with(name, problem):
    """Within 1e-4 of the largest influence (float32 sums in another order), and the same decisions."""
    if name != "autograd":
        pytest.importorskip(name)
    u = gradients(problem.collector, problem.train)
    v = gradients(problem.collector, problem.val)
    labels = torch.arange(10) % 3
    val_labels = (10 + torch.arange(6)) % 3
    means = ClassMeans.empty(3, v.shape[1])
    means.add(v, val_labels)
    found = averages(means.influence(u), labels, means.counts)
    mine = keep(found, zero(found))

    matrix = REFERENCES[name](problem)
    assert matrix.shape == (10, 6)
    assert ((u.double() @ v.double().T - matrix).abs().max() / matrix.abs().max()) < 1e-4
    own = torch.stack([matrix[i, val_labels == c].mean() for i, c in enumerate(labels)])
    assert torch.equal(mine, (own > 0) & (matrix.mean(1) >= 0))


def test_whole_sequences_have_the_collectors_losses_and_gradients(problem):
    losses = problem.losses()
    assert len(losses.names) == 7
    found = problem.collector(problem.train[:3])
    whole = losses(torch.arange(3)).float()
    torch.testing.assert_close(whole, found.losses, rtol=1e-4, atol=1e-5)
    mine = torch.cat([w.flatten(1) for w in found.weights()], 1).double()
    wanted = autograd_gradients(losses, torch.arange(3))
    assert ((mine - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-4
