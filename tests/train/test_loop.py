import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from safelens.train.loop import LoopConfig, TrainingError, fit, optimizers, rate


def problem():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss_of_batch(batch):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(batch))
        return {"loss": (module(x) - x.sum(1, keepdim=True)).pow(2).mean()}

    return module, loss_of_batch


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
    with pytest.raises(TrainingError, match="another model"):
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


def test_accumulated_batches_are_one_batch_of_their_mean(tmp_path):
    config = {"steps": 6, "warmup": 1, "muon_lr": None}
    one, loss = problem()
    both = lambda step: {"loss": (loss(2 * step)["loss"] + loss(2 * step + 1)["loss"]) / 2}  # noqa: E731
    fit(one, both, LoopConfig(**config), tmp_path / "a", title="t")
    two, loss = problem()
    fit(two, loss, LoopConfig(**config, accumulate=2), tmp_path / "b", title="t")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b)


PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from safelens.train.loop import LoopConfig, fit
from test_loop import problem
module, loss = problem()
fit(module, loss, LoopConfig(steps=6, warmup=1, muon_lr=None), Path(sys.argv[1]), title="t")
"""


def test_two_processes_train_as_one_that_accumulates(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*launch, str(script), str(tmp_path / "two"), os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    module, loss = problem()
    config = LoopConfig(steps=6, warmup=1, muon_lr=None, accumulate=2)
    fit(module, loss, config, tmp_path / "one", title="t")
    saved = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert saved["processes"] == 2
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(saved["weights"][name], parameter.detach())
    rows = [(tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("one", "two")]
    for mine, theirs in zip(*rows, strict=True):
        assert json.loads(mine)["loss"] == pytest.approx(json.loads(theirs)["loss"], abs=2e-4)


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(tmp_path):
    module, loss = problem()

    def breaks(batch):
        return {"loss": loss(batch)["loss"] * (float("nan") if batch == 3 else 1)}

    config = LoopConfig(steps=6, checkpoint_every=2)
    with pytest.raises(TrainingError, match=r"step 3: loss nan.*lower"):
        fit(module, breaks, config, tmp_path, title="t")
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_another_division_of_the_work_is_refused(tmp_path):
    module, loss = problem()
    fit(module, loss, LoopConfig(steps=2), tmp_path, title="t")
    with pytest.raises(TrainingError, match="batches would differ"):
        fit(module, loss, LoopConfig(steps=4, accumulate=2), tmp_path, title="t")


def test_curves_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module, loss = problem()
    fit(module, loss, LoopConfig(steps=5), tmp_path, title="t")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [json.loads(x)["loss"] for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e.step for e in events.Scalars("loss")] == list(range(5))
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged, abs=1e-4)
