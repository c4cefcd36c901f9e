"""Influence by other means: plain autograd, Captum and kronfluence, each as a full matrix.

Knows how a module must look for these libraries to take it. Knows nothing of SafeLens's own influence.

All compute what equation 1 of arXiv 2605.17610 defines: dot products of loss gradients at the same
linear layers, of every training with every validation sample. None can share the policy's cache between
samples: Captum and kronfluence take a layer's calls in a forward pass as a batch of samples, and a cached
head would be a call of another batch size. So here the head is run anew in each row, whole sequences at
once. All else is as a careful user would have it: weights other than the layers' are frozen, so that no
gradient goes below the last block; samples run in batches; the training set is gone through once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from safelens.curate.gradients import GradientCollector
from safelens.train.sequences import Example
from safelens.vlm import VisionLanguageModel


class SampleLosses(nn.Module):
    """The model as a module from row numbers to losses.

    Args:
        vlm: The model; all its weights but the layers' are frozen.
        head: The text that all samples begin with.
        layers: Whose gradients are asked for.
        examples: The samples, of one turn each.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        head: str,
        layers: Sequence[nn.Linear],
        examples: Sequence[Example],
    ) -> None:
        super().__init__()
        self.model = vlm.model.requires_grad_(False)
        for layer in layers:
            layer.weight.requires_grad_(True)
        self.weights = [layer.weight for layer in layers]
        self.names = [n for n, m in self.named_modules() if any(m is layer for layer in layers)]
        self._vlm, self._head, self._examples = vlm, vlm.ids(head).to(vlm.device), examples

    def forward(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy over each sample's answer tokens, shape (B,), of rows (B,)."""
        batch = [self._examples[i] for i in rows.tolist()]
        start = len(self._head)
        found = self._vlm.video_rows(
            start, [e.video for e in batch], [torch.cat(e.turns[0]) for e in batch]
        )
        ids = torch.cat([self._head.expand(len(batch), -1), found.ids], dim=1)
        before = self._vlm.text_inputs(ids[:, :start], 0)["position_ids"]
        positions = torch.cat([before, found.inputs["position_ids"]], dim=-1)
        inputs = found.inputs | {"input_ids": ids, "position_ids": positions}
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        ends = [start + length for length in found.lengths]
        return torch.stack(
            [
                self._loss(hidden[i], ids[i], end - len(e.turns[0][1]), end)
                for i, (e, end) in enumerate(zip(batch, ends, strict=True))
            ]
        )

    def _loss(self, hidden: Tensor, ids: Tensor, start: int, end: int) -> Tensor:
        logits = self.model.lm_head(hidden[start - 1 : end - 1])
        return F.cross_entropy(logits.double(), ids[start:end])


@dataclass(frozen=True)
class Problem:
    """What every system is asked: the influence of N training samples on M validation samples.

    Attributes:
        collector: Names the layers.
        head: The text that all samples begin with.
        vlm: The model.
        train: N samples.
        val: M samples.
        batch: Samples that are run together.
    """

    collector: GradientCollector
    head: str
    vlm: VisionLanguageModel
    train: list[Example]
    val: list[Example]
    batch: int = 8

    def losses(self) -> SampleLosses:
        """All samples as a module; the training samples are its first rows."""
        layers = list(self.collector.layers.values())
        return SampleLosses(self.vlm, self.head, layers, self.train + self.val)

    @property
    def train_rows(self) -> Tensor:
        """Rows of the training samples, shape (N,)."""
        return torch.arange(len(self.train))

    @property
    def val_rows(self) -> Tensor:
        """Rows of the validation samples, shape (M,)."""
        return len(self.train) + torch.arange(len(self.val))


def autograd_gradients(losses: SampleLosses, rows: Tensor) -> Tensor:
    """Gradients by one backward pass a sample, shape (B, D), in float64."""

    def of(row: Tensor) -> Tensor:
        found = torch.autograd.grad(losses(row[None])[0], losses.weights)
        return torch.cat([g.flatten() for g in found]).double()

    return torch.stack([of(row) for row in rows])


def autograd(problem: Problem) -> Tensor:
    """The exact matrix (N, M), sample by sample; dot products in float64."""
    losses = problem.losses()
    val = autograd_gradients(losses, problem.val_rows)
    return torch.cat([autograd_gradients(losses, r) @ val.T for r in problem.train_rows.split(8)])


def captum(problem: Problem) -> Tensor:
    """The matrix (N, M) by Captum's `TracInCP`, with its per-sample gradients of a whole batch."""
    from captum.influence import TracInCP

    losses = problem.losses()
    for layer in problem.collector.layers.values():
        # Captum's hooks sit on inputs' gradients, which behind frozen blocks there are none of
        layer.register_forward_pre_hook(_ask_for_gradient)

    def batches(rows: Tensor) -> DataLoader[Any]:
        # the last element of a batch is taken for its labels and is not read
        return DataLoader(TensorDataset(rows, rows), batch_size=problem.batch)

    tracin = TracInCP(
        losses,
        batches(problem.train_rows),
        checkpoints=["as it is"],
        checkpoints_load_func=lambda model, checkpoint: 1.0,
        layers=losses.names,
        loss_fn=None,
        sample_wise_grads_per_batch=True,
    )
    return tracin.influence(batches(problem.val_rows)).detach().double().T


def _ask_for_gradient(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    inputs[0].requires_grad_(True)


def kronfluence(problem: Problem) -> Tensor:
    """The matrix (N, M) by kronfluence without a preconditioner (`strategy="identity"`)."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    losses = problem.losses()
    names = losses.names

    class SumOfLosses(Task):
        def compute_train_loss(
            self, batch: list[Tensor], model: nn.Module, sample: bool = False
        ) -> Tensor:
            return model(batch[0]).sum()

        def compute_measurement(self, batch: list[Tensor], model: nn.Module) -> Tensor:
            return model(batch[0]).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return names

    task = SumOfLosses()
    train, val = TensorDataset(problem.train_rows), TensorDataset(problem.val_rows)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "influence",
            prepare_model(losses, task),
            task,
            cpu=problem.vlm.device.type == "cpu",
            output_dir=folder,
            disable_tqdm=True,
        )
        analyzer.fit_all_factors(
            "none", train, factor_args=FactorArguments(strategy="identity"), per_device_batch_size=1
        )
        # all validation gradients are held at once; with fewer it would run the training set again
        together = -(-len(problem.val) // problem.batch)
        analyzer.compute_pairwise_scores(
            "all",
            "none",
            query_dataset=val,
            train_dataset=train,
            per_device_query_batch_size=problem.batch,
            per_device_train_batch_size=problem.batch,
            score_args=ScoreArguments(query_gradient_accumulation_steps=together),
        )
        return analyzer.load_pairwise_scores("all")["all_modules"].double().T


REFERENCES: dict[str, Callable[[Problem], Tensor]] = {
    "autograd": autograd,
    "captum": captum,
    "kronfluence": kronfluence,
}
"""By the name of the package that each needs; autograd is torch's own."""
