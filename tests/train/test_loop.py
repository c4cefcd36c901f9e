import json

import pytest
import torch
from torch import nn

from safelens.train.loop import LoopConfig, fit, optimizers, rate


def problem():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss_of_step(step):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        return {"loss": (module(x) - x.sum(1, keepdim=True)).pow(2).mean()}

    return module, loss_of_step


def test_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    config = LoopConfig(steps=30, warmup=5, checkpoint_every=10)
    whole, loss = problem()
    fit(whole, loss, config, tmp_path / "whole", title="t")

    broken, loss = problem()

    def stops(step):
        if step == 17:
            raise KeyboardInterrupt
        return loss(step)

    with pytest.raises(KeyboardInterrupt):
        fit(broken, stops, config, tmp_path / "broken", title="t")
    again, loss = problem()
    fit(again, loss, config, tmp_path / "broken", title="t")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    steps = [
        json.loads(x)["step"] for x in (tmp_path / "broken/log.jsonl").read_text().split("\n") if x
    ]
    assert steps == list(range(30))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    module, loss = problem()
    fit(module, loss, LoopConfig(steps=2), tmp_path, title="t")
    other = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="another model"):
        fit(other, lambda s: {"loss": other.weight.sum()}, LoopConfig(steps=2), tmp_path, title="t")


def test_rate_warms_up_and_falls_to_the_final_fraction():
    config = LoopConfig(steps=100, warmup=10, final=0.1)
    rates = [rate(s, config) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_muon_takes_matrices_but_no_embeddings_or_heads():
    module = nn.ModuleDict({"embed": nn.Embedding(4, 3), "linear": nn.Linear(3, 3)})
    adam, muon = optimizers(module.named_parameters(), LoopConfig(steps=1))
    assert [p is module["linear"].weight for g in muon.param_groups for p in g["params"]] == [True]
    assert len(adam.param_groups[0]["params"]) == 2
