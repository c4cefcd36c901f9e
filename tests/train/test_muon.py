import pytest
import torch

from safelens.train.muon import Muon, orthogonalized

torch.set_num_threads(1)


def weights():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s)) for s in ((24, 8), (8, 24), (24, 8), (16, 16))]


def run(optimizer, parameters, steps, seed=1):
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=random)
        optimizer.step()


def test_follows_torch_muon_up_to_bfloat16():
    ours, theirs = weights(), weights()
    run(Muon(ours, lr=0.02, weight_decay=0.1), ours, 20)
    run(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1), theirs, 20)
    for a, b, start in zip(ours, theirs, weights(), strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()


def test_continues_from_its_state():
    whole, cut = weights(), weights()
    optimizer = Muon(whole)
    run(optimizer, whole, 3)
    run(optimizer, whole, 2, seed=2)
    first, second = Muon(cut), Muon(cut, lr=0.5)
    run(first, cut, 3)
    second.load_state_dict(first.state_dict())
    run(second, cut, 2, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_singular_values_are_near_one():
    torch.manual_seed(0)
    for shape in ((3, 40, 10), (3, 10, 40)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_only_matrices():
    with pytest.raises(ValueError, match=r"\(5,\)"):
        Muon([torch.nn.Parameter(torch.zeros(5))])
