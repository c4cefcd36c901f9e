"""The rolling attention probe: hidden states of a question's tokens to class probabilities.

Knows the equation of arXiv 2601.11516 (its text was not to be had; reimplementations that agree on
most of it were compared) and SafeLens's extension to several classes. Does not know which model the
hidden states come from, nor what a probability leads to.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS_FILE = "probe.safetensors"
CONFIG_FILE = "probe.json"


@dataclass(frozen=True)
class ProbeConfig:
    """Shape of a probe, and a choice for each point on which sources differ.

    Attributes:
        input_dim: Width D of the hidden states.
        labels: Names of the classes, in the order of the output.
        width: Width of both layers of the MLP.
        heads: Attention heads H.
        window: Tokens w that one window covers.
        last_relu: Whether a ReLU follows the MLP's second layer.
        scale: Factor on q_h . y_j before the softmax: 1, 1 / sqrt(width), or learned per head.
        pooling: `sum_of_max` adds each head's best window; `max_of_sum` takes the best window of
            all heads together.
        train_attention: Softmax while training: over windows as in use, or over the whole sequence.
    """

    input_dim: int
    labels: tuple[str, ...]
    width: int = 100
    heads: int = 10
    window: int = 10
    last_relu: bool = True
    scale: Literal["one", "inverse_sqrt", "learned"] = "one"
    pooling: Literal["sum_of_max", "max_of_sum"] = "sum_of_max"
    train_attention: Literal["rolling", "whole"] = "rolling"

    def __post_init__(self) -> None:
        for name in ("input_dim", "width", "heads", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe {name} must be at least 1: {getattr(self, name)}")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"probe labels must be two or more different names: {self.labels}")
        for name, allowed in (
            ("scale", ("one", "inverse_sqrt", "learned")),
            ("pooling", ("sum_of_max", "max_of_sum")),
            ("train_attention", ("rolling", "whole")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"probe {name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )


class RollingAttentionProbe(nn.Module):
    """Rolling attention probe with one value vector per head and class.

    With y_j = MLP(x_j), a_jh = exp(q_h . y_j) and windows (t-w, t] of w tokens,

        v_thc = sum_j a_jh (v_hc . y_j) / sum_j a_jh        logit_c = sum_h max_t v_thc.

    A sequence shorter than w is one window. Inputs are standardized first, by statistics that
    `fit_probe` stores with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [
            nn.Linear(config.input_dim, config.width),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
        ]
        if config.last_relu:
            layers.append(nn.ReLU())
        self.mlp = nn.Sequential(*layers)
        bound = config.width**-0.5
        self.query = nn.Parameter(torch.randn(config.heads, config.width) * bound)
        self.value = nn.Parameter(
            torch.randn(config.heads, len(config.labels), config.width) * bound
        )
        self.log_scale = (
            nn.Parameter(torch.zeros(config.heads)) if config.scale == "learned" else None
        )
        self.register_buffer("mean", torch.zeros(config.input_dim))
        self.register_buffer("std", torch.ones(config.input_dim))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits, shape (N, C).

        Args:
            hidden: Hidden states of shape (N, T, D), any float type; computed in the probe's type.
            mask: True where a token counts, shape (N, T); all count when None. The tokens that
                count are taken as one sequence, wherever the padding is.

        Raises:
            ValueError: Other shapes, or a row without any token.
        """
        hidden, lengths = self._aligned(hidden, mask)
        y = self.mlp((hidden.to(self.mean.dtype) - self.mean) / self.std)
        scores = torch.einsum("nth,kh->nkt", y, self.query)
        if self.config.scale == "inverse_sqrt":
            scores = scores * self.config.width**-0.5
        elif self.log_scale is not None:
            scores = scores * self.log_scale.exp()[:, None]
        values = torch.einsum("nth,kch->nkct", y, self.value)
        present = torch.arange(y.shape[1], device=y.device) < lengths[:, None]
        # The lowest finite number, not -inf: a softmax over padding alone must not become NaN.
        scores = scores.masked_fill(~present[:, None], torch.finfo(scores.dtype).min)
        if self.training and self.config.train_attention == "whole":
            return torch.einsum("nkt,nkct->nc", scores.softmax(dim=-1), values)
        return self._rolling(scores, values, lengths)

    def flops(self, tokens: int) -> float:
        """Floating-point operations of one sequence: MLP, queries, values and the windows' sums.

        Args:
            tokens: T of the sequence.
        """
        c = self.config
        values = c.heads * len(c.labels)
        a_token = c.width * (c.input_dim + c.width + c.heads + values) + c.window * values
        return 2.0 * tokens * a_token

    def predict(self, hidden: Tensor, mask: Tensor | None = None, batch_size: int = 256) -> Tensor:
        """Class probabilities in float32, shape (N, C), rows summing to 1; no gradient."""
        was_training = self.training
        self.eval()
        device = self.mean.device
        with torch.no_grad():
            rows = [
                self(
                    hidden[i : i + batch_size].to(device),
                    None if mask is None else mask[i : i + batch_size].to(device),
                )
                for i in range(0, len(hidden), batch_size)
            ]
        self.train(was_training)
        logits = torch.cat(rows) if rows else torch.zeros(0, len(self.config.labels))
        return logits.float().softmax(dim=-1)

    def save(self, directory: str | Path) -> None:
        """Write `probe.safetensors` and `probe.json` into `directory` (made when missing)."""
        from safetensors.torch import save_file

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def load(
        cls, directory: str | Path, device: str | torch.device = "cpu"
    ) -> RollingAttentionProbe:
        """Read what `save` wrote, ready for `predict`.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The files do not describe one probe.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(directory)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: missing; expected a saved probe here")
        try:
            fields = json.loads((folder / CONFIG_FILE).read_text())
            fields["labels"] = tuple(fields["labels"])
            config = ProbeConfig(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE}: no probe configuration: {error}") from error
        probe = cls(config)
        try:
            probe.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{folder / WEIGHTS_FILE}: not the weights that {CONFIG_FILE} describes: {error}"
            ) from error
        return probe.to(device).eval()

    def _aligned(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens that count moved to the front in order, and their number per row."""
        if hidden.ndim != 3 or hidden.shape[-1] != self.config.input_dim:
            raise ValueError(
                f"hidden must be (N, T, {self.config.input_dim}), got {tuple(hidden.shape)}"
            )
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if mask.shape != hidden.shape[:2]:
            raise ValueError(
                f"mask must be {tuple(hidden.shape[:2])} as hidden, got {tuple(mask.shape)}"
            )
        mask = mask.bool()
        lengths = mask.sum(dim=1)
        if not bool((lengths > 0).all()):
            raise ValueError(f"row {int(lengths.argmin())} of hidden has no token that counts")
        order = torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices
        hidden = hidden.gather(1, order[:, :, None].expand_as(hidden))
        # Padding may hold anything, NaN too, and 0 * NaN is NaN.
        kept = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        return hidden.masked_fill(~kept[:, :, None], 0.0), lengths

    def _rolling(self, scores: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        window = self.config.window
        low = torch.finfo(scores.dtype).min
        scores = F.pad(scores, (window - 1, 0), value=low).unfold(-1, window, 1)
        values = F.pad(values, (window - 1, 0)).unfold(-1, window, 1)
        pooled = torch.einsum("nktw,nkctw->nkct", scores.softmax(dim=-1), values)
        last = torch.arange(pooled.shape[-1], device=pooled.device)
        first_end = (lengths.clamp(max=window) - 1)[:, None]
        ends = (last >= first_end) & (last < lengths[:, None])
        pooled = pooled.masked_fill(~ends[:, None, None], -torch.inf)
        if self.config.pooling == "sum_of_max":
            return pooled.amax(dim=-1).sum(dim=1)
        return pooled.sum(dim=1).amax(dim=-1)


@dataclass(frozen=True)
class ProbeFit:
    """A trained probe and how its training went.

    Attributes:
        probe: The probe at its best held-out loss, ready for `predict`.
        best_step: Step of those weights.
        held_out_loss: Cross-entropy there.
        held_out_accuracy: Unweighted mean of the class accuracies there (classes present).
        history: (step, held-out loss) of every check.
    """

    probe: RollingAttentionProbe
    best_step: int
    held_out_loss: float
    held_out_accuracy: float
    history: tuple[tuple[int, float], ...]


def fit_probe(
    hidden: Tensor,
    mask: Tensor | None,
    labels: Tensor,
    config: ProbeConfig,
    *,
    steps: int = 1000,
    lr: float = 1e-4,
    weight_decay: float = 3e-3,
    seed: int = 0,
    batch_size: int = 64,
    balanced: bool = True,
    held_out: float = 0.15,
    check_every: int = 25,
    patience: int = 10,
) -> ProbeFit:
    """Train a probe with AdamW and cross-entropy; keep the weights that do best on held-out rows.

    Args:
        hidden: Shape (N, T, D); may be half precision and on any device.
        mask: True where a token counts, shape (N, T), or None.
        labels: Class indices into `config.labels`, shape (N,).
        config: The probe to train.
        steps: Most optimizer steps.
        lr: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        seed: Seeds the split, the weights and the batches.
        batch_size: Rows per step.
        balanced: Draw every class equally often; else rows as they come.
        held_out: Share of each class kept for early stopping, in (0, 1).
        check_every: Steps between two looks at the held-out rows.
        patience: Looks without a better loss before stopping.

    Raises:
        ValueError: Labels of another shape or out of range, or fewer than 2 rows of some class
            present.
    """
    count = len(config.labels)
    labels = labels.to(torch.long).cpu()
    if labels.shape != (len(hidden),) or not len(labels):
        raise ValueError(
            f"labels must be ({len(hidden)},) and not empty, got {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise ValueError(
            f"labels must lie in 0..{count - 1}: {int(labels.min())}..{int(labels.max())}"
        )
    random = torch.Generator().manual_seed(seed)
    train_rows, held_rows = _split(labels, held_out, random, config.labels)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = RollingAttentionProbe(config)
    tokens = hidden[train_rows.to(hidden.device)]
    tokens = (
        tokens.flatten(0, 1) if mask is None else tokens[mask[train_rows.to(mask.device)].bool()]
    )
    tokens = tokens.float()
    probe.mean.copy_(tokens.mean(dim=0))
    probe.std.copy_(tokens.std(dim=0).clamp(min=1e-6))
    probe.to(hidden.device)

    sizes = torch.bincount(labels[train_rows], minlength=count).float()
    chance = 1 / sizes[labels[train_rows]] if balanced else torch.ones(len(train_rows))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=weight_decay)

    def logits_of(rows: Tensor) -> Tensor:
        picked = None if mask is None else mask[rows.to(mask.device)].to(hidden.device)
        out: Tensor = probe(hidden[rows.to(hidden.device)], picked)
        return out

    best = (float("inf"), 0, copy.deepcopy(probe.state_dict()))
    history: list[tuple[int, float]] = []
    misses = 0
    for step in range(1, steps + 1):
        probe.train()
        rows = train_rows[torch.multinomial(chance, batch_size, replacement=True, generator=random)]
        loss = F.cross_entropy(logits_of(rows), labels[rows].to(hidden.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % check_every and step != steps:
            continue
        held = float(_held_out(probe, logits_of, held_rows, labels, balanced)[0])
        history.append((step, held))
        if held < best[0]:
            best, misses = (held, step, copy.deepcopy(probe.state_dict())), 0
        else:
            misses += 1
            if misses >= patience:
                break
    probe.load_state_dict(best[2])
    loss_value, accuracy = _held_out(probe, logits_of, held_rows, labels, balanced)
    return ProbeFit(probe, best[1], float(loss_value), float(accuracy), tuple(history))


def _held_out(
    probe: RollingAttentionProbe,
    logits_of: Callable[[Tensor], Tensor],
    rows: Tensor,
    labels: Tensor,
    balanced: bool,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and mean class accuracy on held-out rows, classes weighted as in training."""
    probe.eval()
    with torch.no_grad():
        logits = torch.cat([logits_of(piece).float().cpu() for piece in rows.split(256)])
    truth = labels[rows]
    losses = F.cross_entropy(logits, truth, reduction="none")
    right = (logits.argmax(dim=1) == truth).float()
    classes = truth.unique()
    accuracy = torch.stack([right[truth == c].mean() for c in classes]).mean()
    loss = torch.stack([losses[truth == c].mean() for c in classes]).mean()
    return (loss if balanced else losses.mean()), accuracy


def _split(
    labels: Tensor, share: float, random: torch.Generator, names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to hold out, the same share of each class."""
    if not 0 < share < 1:
        raise ValueError(f"held_out must lie between 0 and 1: {share}")
    train, held = [], []
    for c in labels.unique().tolist():
        rows = (labels == c).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError(f"class {names[c]!r} has 1 row; at least 2 are needed to hold one out")
        rows = rows[torch.randperm(len(rows), generator=random)]
        kept = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.append(rows[:kept])
        train.append(rows[kept:])
    return torch.cat(train), torch.cat(held)
