"""Teacher-forced batches for the vision-language model, with the prompt's head shared.

Knows how a clip and its turns become one sequence and one loss. Knows nothing of policies or labels.

The head (the policy) is run once a batch, with gradient, and its cache repeated over the rows; only
video, question and answer are run per sample. Cross-entropy is on the answers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from safelens.vlm import Context, EncodedVideo, VisionLanguageModel


@dataclass(frozen=True)
class Example:
    """One training sequence after the head: the clip, then turns of prompt and answer.

    Attributes:
        video: the clip as model input.
        turns: (prompt, answer) token ids; prompts are only read, answers are learned.
    """

    video: EncodedVideo
    turns: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class Scored:
    """What a teacher-forced pass gives.

    Attributes:
        losses: mean cross-entropy over the answer tokens of the batch, one a turn.
        hidden: last hidden states, shape (B, L, D).
        ids: token ids, shape (B, L).
        answers: where each row's answers begin and end, one pair a turn.
    """

    losses: list[torch.Tensor]
    hidden: torch.Tensor
    ids: torch.Tensor
    answers: list[list[tuple[int, int]]]


def teacher_forced(
    vlm: VisionLanguageModel,
    head: torch.Tensor | None,
    batch: Sequence[Example],
) -> Scored:
    """Run a batch and score its answers; gradients flow to whatever is trainable.

    Args:
        vlm: the model.
        head: token ids that all rows share, shape (L,), or None.
        batch: rows with the same number of turns.
    """
    cache, start = None, 0
    if head is not None:
        context, start = Context.empty(vlm.model.config), len(head)
        vlm.run(vlm.text_inputs(head[None], 0), context.cache)
        cache = context.fork(len(batch)).cache
    tails = [torch.cat([part for turn in e.turns for part in turn]) for e in batch]
    rows = vlm.video_rows(start, [e.video for e in batch], tails)
    hidden = vlm.run(rows.inputs, cache)
    spans = [_answer_spans(e) for e in batch]
    losses = [
        answer_loss(vlm, hidden, rows.ids, [row[turn] for row in spans])
        for turn in range(len(batch[0].turns))
    ]
    return Scored(losses, hidden, rows.ids, spans)


def answer_loss(
    vlm: VisionLanguageModel,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    spans: Sequence[tuple[int, int]],
    *,
    only: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of tokens [start, end) of each row given the states before them.

    Args:
        vlm: gives the head.
        hidden: shape (B, L, D).
        ids: shape (B, L).
        spans: one a row.
        only: token ids that count; all do if None.
    """
    states = torch.cat([hidden[i, a - 1 : b - 1] for i, (a, b) in enumerate(spans)])
    wanted = torch.cat([ids[i, a:b] for i, (a, b) in enumerate(spans)])
    if only is not None:
        counts = torch.isin(wanted, only)
        states, wanted = states[counts], wanted[counts]
    return F.cross_entropy(vlm.model.lm_head(states).float(), wanted)


def _answer_spans(example: Example) -> list[tuple[int, int]]:
    at, spans = len(example.video.ids), []
    for prompt, answer in example.turns:
        spans.append((at + len(prompt), at + len(prompt) + len(answer)))
        at = spans[-1][1]
    return spans
