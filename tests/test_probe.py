import math
from dataclasses import replace

import pytest
import torch

from safelens.probe import ProbeConfig, RollingAttentionProbe, fit_probe

torch.set_num_threads(1)
CONFIG = ProbeConfig(input_dim=6, labels=("a", "b", "safe"), width=8, heads=3, window=4)
OPTIONS = [
    CONFIG,
    replace(CONFIG, last_relu=False, scale="inverse_sqrt"),
    replace(CONFIG, scale="learned", pooling="max_of_sum"),
]


def make(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    probe = RollingAttentionProbe(config).double()
    with torch.no_grad():
        probe.mean.normal_()
        probe.std.uniform_(0.5, 2)
        if probe.log_scale is not None:
            probe.log_scale.normal_()
        probe.query.mul_(4)
    return probe.eval()


def direct(probe, tokens):
    """The equation, token by token, for one sequence without padding."""
    c = probe.config
    first, second = probe.mlp[0], probe.mlp[2]
    ys = []
    for x in tokens:
        y = (x - probe.mean) / probe.std
        y = second.weight @ torch.relu(first.weight @ y + first.bias) + second.bias
        ys.append(torch.relu(y) if c.last_relu else y)
    length = len(ys)
    spans = (
        [(0, length)]
        if length < c.window
        else [(t - c.window, t) for t in range(c.window, length + 1)]
    )
    table = {}
    for h in range(c.heads):
        scale = {"one": 1.0, "inverse_sqrt": c.width**-0.5}.get(c.scale)
        if scale is None:
            scale = math.exp(float(probe.log_scale[h]))
        for k in range(len(c.labels)):
            for s, (start, stop) in enumerate(spans):
                over = under = 0.0
                for j in range(start, stop):
                    a = math.exp(scale * float(probe.query[h] @ ys[j]))
                    over += a * float(probe.value[h, k] @ ys[j])
                    under += a
                table[h, k, s] = over / under
    logits = []
    for k in range(len(c.labels)):
        if c.pooling == "sum_of_max":
            logits.append(
                sum(max(table[h, k, s] for s in range(len(spans))) for h in range(c.heads))
            )
        else:
            logits.append(
                max(sum(table[h, k, s] for h in range(c.heads)) for s in range(len(spans)))
            )
    return torch.tensor(logits, dtype=torch.float64)


@pytest.mark.parametrize("config", OPTIONS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 11])
def test_equals_the_equation_written_out(config, length):
    probe = make(config)
    hidden = torch.randn(2, length, 6, dtype=torch.float64)
    expected = torch.stack([direct(probe, row) for row in hidden])
    torch.testing.assert_close(probe(hidden).detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", OPTIONS)
@pytest.mark.parametrize("lengths", [(9, 2, 4), (3, 1, 2), (12, 12, 5)])
def test_padding_on_either_side_or_inside_changes_nothing(config, lengths):
    probe = make(config)
    rows = [torch.randn(n, 6, dtype=torch.float64) for n in lengths]
    expected = torch.stack([probe(row[None])[0] for row in rows])
    total = max(lengths) + 3
    for where in ("left", "right", "inside"):
        hidden = torch.full((len(rows), total, 6), torch.nan, dtype=torch.float64)
        mask = torch.zeros(len(rows), total, dtype=torch.bool)
        for i, row in enumerate(rows):
            n = len(row)
            at = {
                "left": list(range(total - n, total)),
                "right": list(range(n)),
                "inside": [*range(n // 2), *range(n // 2 + 2, n + 2)],
            }[where]
            hidden[i, at] = row
            mask[i, at] = True
        torch.testing.assert_close(probe(hidden, mask), expected)


@pytest.mark.parametrize("config", OPTIONS)
@pytest.mark.parametrize("attention", ["rolling", "whole"])
def test_gradients_are_finite_with_masks_and_large_scores(config, attention):
    probe = make(replace(config, train_attention=attention)).float().train()
    with torch.no_grad():
        probe.query.mul_(1000)
    hidden = torch.randn(3, 7, 6)
    mask = torch.tensor([[1] * 7, [1] * 2 + [0] * 5, [0] * 6 + [1]])
    probe(hidden, mask).logsumexp(dim=1).sum().backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_whole_sequence_softmax_is_one_window_and_only_for_training():
    whole = make(replace(CONFIG, train_attention="whole"))
    one_window = make(replace(CONFIG, window=50))
    hidden = torch.randn(2, 9, 6, dtype=torch.float64)
    torch.testing.assert_close(whole.train()(hidden), one_window(hidden))
    torch.testing.assert_close(whole.eval()(hidden), make()(hidden))


def test_shapes_and_values_are_checked():
    probe = make()
    with pytest.raises(ValueError, match=r"\(N, T, 6\)"):
        probe(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="row 1 of hidden has no token"):
        probe(torch.zeros(2, 3, 6), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="mask must be"):
        probe(torch.zeros(2, 3, 6), torch.ones(2, 4))
    with pytest.raises(ValueError, match="pooling"):
        replace(CONFIG, pooling="mean")
    with pytest.raises(ValueError, match="labels"):
        replace(CONFIG, labels=("a", "a"))


def test_saves_and_loads(tmp_path):
    probe = make(OPTIONS[2]).float()
    probe.save(tmp_path / "probe")
    again = RollingAttentionProbe.load(tmp_path / "probe")
    hidden = torch.randn(5, 9, 6)
    assert again.config == probe.config
    assert torch.equal(again.predict(hidden), probe.predict(hidden, batch_size=2))
    assert torch.allclose(again.predict(hidden).sum(dim=1), torch.ones(5))
    (tmp_path / "probe" / "probe.json").write_text('{"input_dim": 6}')
    with pytest.raises(ValueError, match=r"probe\.json"):
        RollingAttentionProbe.load(tmp_path / "probe")
    (tmp_path / "probe" / "probe.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"probe\.json"):
        RollingAttentionProbe.load(tmp_path / "probe")


def toy(rows, seed):
    """Three classes; the class is written on one token of 20, among noise and padding."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=random)
    labels[: rows // 2] = 2
    hidden = torch.randn(rows, 20, 6, generator=random)
    mask = torch.ones(rows, 20, dtype=torch.bool)
    mask[:, :5] = torch.rand(rows, 1, generator=random) < 0.5
    spot = torch.randint(5, 20, (rows,), generator=random)
    hidden[torch.arange(rows), spot, labels] += 6
    return hidden * 3 + 10, mask, labels


def test_learns_a_toy_problem_the_same_way_twice():
    hidden, mask, labels = toy(600, seed=1)
    config = replace(CONFIG, width=32, scale="learned")
    fits = [
        fit_probe(hidden, mask, labels, config, steps=200, lr=1e-2, seed=3, batch_size=32)
        for _ in range(2)
    ]
    assert fits[0].history == fits[1].history
    assert fits[0].held_out_accuracy > 0.85
    assert fits[0].held_out_loss == pytest.approx(min(loss for _, loss in fits[0].history))
    hidden, mask, labels = toy(300, seed=2)
    guessed = fits[0].probe.predict(hidden, mask).argmax(dim=1)
    assert (guessed == labels).float().mean() > 0.85
    torch.testing.assert_close(fits[0].probe.mean, torch.full((6,), 10.0), atol=1.0, rtol=0)


def test_stops_early_when_nothing_is_to_be_learned():
    torch.manual_seed(0)
    fit = fit_probe(
        torch.randn(60, 5, 6),
        None,
        torch.arange(60) % 3,
        CONFIG,
        steps=2000,
        lr=1e-2,
        check_every=5,
        patience=3,
    )
    assert fit.history[-1][0] < 500
    assert fit.best_step == min(fit.history, key=lambda row: row[1])[0]


def test_fit_refuses_bad_labels():
    hidden = torch.zeros(4, 5, 6)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        fit_probe(hidden, None, torch.tensor([0, 1, 2, 3]), CONFIG)
    with pytest.raises(ValueError, match="class 'safe' has 1 row"):
        fit_probe(hidden, None, torch.tensor([0, 0, 0, 2]), CONFIG)
