"""Teacher-forced batches for the vision-language model, with the prompt's head shared.

Knows how a clip and its turns become one sequence and one loss. Knows nothing of policies or labels.

The head (the policy) is run once a batch, with gradient, and its cache repeated over the rows; only
video, question and answer are run per sample. Cross-entropy is on the answers only. Where categories are read
alone behind each video, or videos are thinned, rows are read one by one, and those of one length answer together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from safelens.safewatch.parallel import ParallelPrompt
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
        hidden: last hidden states of all but the head, or of the turns alone where rows are read one by one,
            shape (B, L, D).
        ids: their token ids, shape (B, L).
        answers: where each row's answers begin and end, one pair a turn.
    """

    losses: list[torch.Tensor]
    hidden: torch.Tensor
    ids: torch.Tensor
    answers: list[list[tuple[int, int]]]


def teacher_forced(
    vlm: VisionLanguageModel,
    head: torch.Tensor | ParallelPrompt | None,
    batch: Sequence[Example],
) -> Scored:
    """Run a batch and score its answers; gradients flow to whatever is trainable.

    Args:
        vlm: the model.
        head: token ids that all rows share, shape (L,); or a prompt whose categories were read alone, by these
            very weights if gradients are to flow (see `TrainedBlocks`); or None.
        batch: rows with the same number of turns.
    """
    videos = [example.video for example in batch]
    tails = [torch.cat([part for turn in e.turns for part in turn]) for e in batch]
    if isinstance(head, ParallelPrompt) and not head.shares_head:
        hidden, ids = continued(vlm, head.contexts(videos), tails)
        spans = [_answer_spans(0, example) for example in batch]
    else:
        cache, start = None, 0
        if head is not None:
            context = head_context(vlm, head)
            cache, start = context.fork(len(batch)).cache, context.position
        rows = vlm.video_rows(start, videos, tails)
        hidden, ids = vlm.run(rows.inputs, cache), rows.ids
        spans = [_answer_spans(len(example.video.ids), example) for example in batch]
    losses = [
        answer_loss(vlm, hidden, ids, [row[turn] for row in spans])
        for turn in range(len(batch[0].turns))
    ]
    return Scored(losses, hidden, ids, spans)


def continued(
    vlm: VisionLanguageModel, contexts: Sequence[Context], tails: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run token ids (L,) behind a context of one row each; those that hold equally many tokens, in one batch.

    Returns:
        Last hidden states (B, L, D) and token ids (B, L), right padded.
    """
    ids = pad_sequence(
        list(tails), batch_first=True, padding_value=vlm.tokenizer.pad_token_id or 0
    ).to(vlm.device)
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, context in enumerate(contexts):
        alike[context.length, context.position].append(row)
    found: dict[int, torch.Tensor] = {}
    for (_, position), rows in alike.items():
        # stacking copies, which lets autograd read what was made in inference mode
        stacked = Context.stack([contexts[row] for row in rows])
        hidden = vlm.run(vlm.text_inputs(ids[rows], position), stacked.cache)
        found |= dict(zip(rows, hidden, strict=True))
    return torch.stack([found[row] for row in range(len(contexts))]), ids


def head_context(vlm: VisionLanguageModel, head: torch.Tensor | ParallelPrompt) -> Context:
    """What :func:`teacher_forced` takes as head, read; it is continued by its forks alone."""
    if isinstance(head, ParallelPrompt):
        return head.opened()
    context = Context.empty(vlm.model.config)
    vlm.read(context, head[None])
    return context


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


def _answer_spans(at: int, example: Example) -> list[tuple[int, int]]:
    spans = []
    for prompt, answer in example.turns:
        spans.append((at + len(prompt), at + len(prompt) + len(answer)))
        at = spans[-1][1]
    return spans
