"""Per-sample gradients against plain autograd through the whole model."""

import pytest
import torch

from safelens.curate.gradients import GradientCollector
from safelens.train.embedder import Turns
from safelens.train.sequences import Example, teacher_forced
from safelens.vlm import VisionLanguageModel


@pytest.fixture(scope="module")
def examples(vlm, policy, make_clip):
    turns = Turns(vlm, policy)
    clips = [make_clip(i, frames=n) for i, n in ((0, 4), (1, 6), (2, 2))]
    videos = vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])
    labels = [("violence",), (), ("sexual", "abuse")]
    found = [Example(v, (turns.screening(names),)) for v, names in zip(videos, labels, strict=True)]
    return turns, found


def plain(vlm, turns, collector, example):
    """The same by backward through everything, head included."""
    vlm.model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        loss = teacher_forced(vlm, turns.head, [example]).losses[0]
        loss.backward()
    found = [layer.weight.grad.clone() for layer in collector.layers.values()]
    vlm.model.zero_grad(set_to_none=True)
    return loss.detach(), found


def test_equals_plain_autograd_per_sample(vlm, examples):
    turns, batch = examples
    collector = GradientCollector(vlm, turns.layout.head)
    assert len(collector.layers) == 7
    found = collector(batch)
    weights = found.weights()
    assert collector.dimension == sum(w[0].numel() for w in weights)
    for row, example in enumerate(batch):
        loss, expected = plain(vlm, turns, collector, example)
        assert found.losses[row] == pytest.approx(float(loss), rel=1e-5)
        for name, mine, wanted in zip(collector.layers, weights, expected, strict=True):
            error = (mine[row] - wanted).norm() / wanted.norm()
            assert error < 1e-4, name


def test_exact_where_the_model_is_sure(vlm_dir, examples, policy):
    """In float32 one minus a probability near one keeps few digits; the gradient is made of it."""
    video = examples[1][0].video
    prompt, answer = examples[1][0].turns[0]
    single, double = (
        VisionLanguageModel.load(vlm_dir, dtype=dtype, frame_pixels=48 * 48)
        for dtype in (torch.float32, torch.float64)
    )
    turns = Turns(double, policy)
    sure = Example(video, ((prompt, answer[:1]),))
    with torch.enable_grad():
        scored = teacher_forced(double, turns.head, [sure])
        [(start, _)] = scored.answers[0]
        state = scored.hidden[0, start - 1]
        weight = torch.zeros_like(double.model.lm_head.weight)
        # not along all of the state: the norm before it lets no such gradient through
        some = state.detach() * (torch.arange(len(state)) < len(state) // 2)
        weight[answer[0]] = 20 * some / some.square().sum()
        loss = torch.nn.functional.cross_entropy((weight @ state)[None], answer[:1])
        layers = GradientCollector(double, turns.layout.head).layers.values()
        wanted = torch.autograd.grad(loss, [layer.weight for layer in layers])
    single.model.lm_head.weight = torch.nn.Parameter(weight.float())
    found = GradientCollector(single, turns.layout.head)([sure])
    assert 0 < loss < 1e-4
    for mine, truth in zip(found.weights(), wanted, strict=True):
        assert (mine[0] - truth).norm() < 1e-4 * truth.norm()


def test_batched_and_single_agree(vlm, examples):
    turns, batch = examples
    collector = GradientCollector(vlm, turns.layout.head)
    together = collector(batch).weights()
    for row, example in enumerate(batch):
        for a, b in zip(together, collector([example]).weights(), strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=1e-3, atol=1e-6)


def test_leaves_the_model_as_it_was(vlm, examples):
    turns, batch = examples
    before = {n: p.clone() for n, p in vlm.model.named_parameters()}
    collector = GradientCollector(vlm, turns.layout.head)
    first = collector(batch).weights()
    again = collector(batch).weights()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for name, parameter in vlm.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_refuses_a_sample_without_an_answer(vlm, examples):
    turns, batch = examples
    prompt, _ = batch[0].turns[0]
    empty = Example(batch[0].video, ((prompt, torch.zeros(0, dtype=torch.long)),))
    with pytest.raises(ValueError, match="non-empty answer"):
        GradientCollector(vlm, turns.layout.head)([empty])


def test_other_families(family_dirs, policy, make_clip):
    """A model of images likewise; one that ends in a convolution is refused."""
    vlm = VisionLanguageModel.load(family_dirs["internvl"], frame_pixels=48 * 48)
    turns, clip = Turns(vlm, policy), make_clip(0, frames=3)
    [video] = vlm.encode_videos([clip.frames], [clip.timestamps])
    example = Example(video, (turns.screening(("violence",)),))
    collector = GradientCollector(vlm, turns.layout.head)
    loss, expected = plain(vlm, turns, collector, example)
    found = collector([example])
    assert found.losses[0] == pytest.approx(float(loss), rel=1e-5)
    for mine, wanted in zip(found.weights(), expected, strict=True):
        assert (mine[0] - wanted).norm() / wanted.norm() < 1e-4
    ends = VisionLanguageModel.load(family_dirs["lfm2_vl"], frame_pixels=48 * 48)
    with pytest.raises(ValueError, match=r"last block of a Lfm2Vl.* has no attention"):
        GradientCollector(ends, turns.layout.head)
