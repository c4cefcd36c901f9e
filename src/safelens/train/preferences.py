"""Preference post-tuning: S2's adapter learns which of two answers is the better one (SafeWatch, section 4.2).

Knows direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) behind S1's cache. Knows nothing of
why an answer is preferred. TRL's trainer is not used: it reads images, not video, and whole prompts, not a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from safelens.reading import Prompt
from safelens.train.embedder import LabelledClip, Turns
from safelens.train.loop import LoopConfig, fit, processes
from safelens.train.reasoner import AugmentedClip, add_adapter
from safelens.train.sequences import continued
from safelens.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Preference:
    """Two answers on one clip.

    Attributes:
        asked: the clip with the captions and scores of S2's request; its description, explanation and labels
            are the preferred answer's.
        rejected: the same clip with those of the other answer.
    """

    asked: AugmentedClip
    rejected: LabelledClip


@dataclass(frozen=True)
class PreferenceBatch:
    """Preferences under one policy.

    Attributes:
        turns: of the policy, in the encoding of ``prompt``.
        prompt: the policy as it is put to the model in use.
        pairs: at least one.
    """

    turns: Turns
    prompt: Prompt
    pairs: Sequence[Preference]


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Direct preference optimization, equation 7 of arXiv 2305.18290.

    L = -E log sigmoid(beta (log pi(y_w|x) - log ref(y_w|x)) - beta (log pi(y_l|x) - log ref(y_l|x)))

    Args:
        chosen: log pi(y_w | x), the sum over the answer's tokens, shape (B,).
        rejected: log pi(y_l | x), shape (B,).
        reference_chosen: log ref(y_w | x), shape (B,).
        reference_rejected: log ref(y_l | x), shape (B,).
        beta: how dearly leaving the reference is bought.

    Returns:
        The loss, and the share of pairs that the model orders rightly more than its reference does.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -F.logsigmoid(beta * margin).mean(), (margin > 0).float().mean()


def answer_log_likelihoods(
    vlm: VisionLanguageModel,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    spans: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """Sum of log-probabilities of tokens [start, end) of each row given the states before them, shape (B,).

    Args:
        vlm: gives the head.
        hidden: shape (B, L, D).
        ids: shape (B, L).
        spans: one a row.
    """
    found = []
    for row, (start, end) in enumerate(spans):
        logits = vlm.model.lm_head(hidden[row, start - 1 : end - 1]).float()
        found.append(-F.cross_entropy(logits, ids[row, start:end], reduction="sum"))
    return torch.stack(found)


def train_preferences(
    vlm: VisionLanguageModel,
    batch_at: Callable[[int], PreferenceBatch],
    out: Path,
    config: LoopConfig,
    *,
    rank: int = 16,
    alpha: int = 32,
    beta: float = 0.1,
) -> None:
    """Train an adapter on preferences and save it to ``out/adapter``.

    The model itself, frozen, is the reference, and reads policy, video and question for both: the adapter is on
    from the request on, as in use. So S1 stays what it was, and no second model is held.

    Args:
        vlm: writes S2's answers already.
        batch_at: number to batch; the same batch for the same number.
        out: directory for checkpoint, log and adapter.
        config: see :class:`LoopConfig`.
        rank: of the adapter.
        alpha: of the adapter.
        beta: see :func:`dpo_loss`.
    """
    add_adapter(vlm, rank, alpha, seed=config.seed)

    def loss_of_batch(number: int) -> dict[str, torch.Tensor]:
        batch = batch_at(number)
        vlm.model.disable_adapters()
        prefilled = batch.prompt.prefill([pair.asked.clip.video for pair in batch.pairs])
        contexts = [prefilled.context(row) for row in range(len(batch.pairs))] * 2
        sides = [pair.asked.clip for pair in batch.pairs] + [pair.rejected for pair in batch.pairs]
        texts = [
            batch.turns.deliberation(
                clip, pair.asked.captions, pair.asked.scores, with_question=False
            )
            for clip, pair in zip(sides, [*batch.pairs, *batch.pairs], strict=True)
        ]
        tails = [torch.cat(text) for text in texts]
        spans = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in texts]
        with torch.no_grad():
            hidden, ids = continued(vlm, contexts, tails)
            chosen, rejected = answer_log_likelihoods(vlm, hidden, ids, spans).chunk(2)
        vlm.model.enable_adapters()
        hidden, ids = continued(vlm, contexts, tails)
        own_chosen, own_rejected = answer_log_likelihoods(vlm, hidden, ids, spans).chunk(2)
        loss, ordered = dpo_loss(own_chosen, own_rejected, chosen, rejected, beta)
        return {"loss": loss, "ordered": ordered, "chosen": (own_chosen - chosen).mean()}

    fit(vlm.model, loss_of_batch, config, out, title="preferences")
    vlm.model.enable_adapters()
    if processes().is_main_process:
        vlm.model.save_pretrained(out / "adapter")
    vlm.model.disable_adapters()
