"""Every category's boolean as S1 asks it: on a continuation of its own, all of them in one pass.

Knows rows of tokens and what continues them. Knows nothing of clips or of how policies are drawn.

In one answer that lists all categories the second boolean is told by the first, and whatever is learned there is
not what S1 is asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from safelens import prompts
from safelens.branches import Branches, Span, branched
from safelens.policy import Category
from safelens.safewatch.parallel import ParallelPrompt
from safelens.train.embedder import Turns, true_and_false
from safelens.train.sequences import head_context
from safelens.vlm import EncodedVideo, VisionLanguageModel
from safelens.vlm_cache import Context

_QUESTION = "Does the video show this?"


class _Openings:
    """The answers' openings of some categories; the tail is what is asked, and what all openings begin with."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        asked: torch.Tensor,
        categories: Sequence[Category],
        spans: Callable[[int], Sequence[Span]] = lambda past: (),
    ) -> None:
        self.vlm, self._spans = vlm, spans
        self._branches = Branches.of([vlm.ids(prompts.category_opening(c)) for c in categories])
        self.tail = torch.cat([asked, self._branches.stem])

    def states(
        self,
        cache: Cache,
        past: int,
        inputs: Mapping[str, torch.Tensor],
        lengths: Sequence[int],
        positions: Sequence[int],
    ) -> torch.Tensor:
        """States before each boolean, (B, C, D), behind rows that end with the tail.

        Args:
            cache: is continued; of ``past`` tokens.
            past: how many.
            inputs: of the rows.
            lengths: real tokens of each.
            positions: what comes behind each.
        """
        own = self._spans(past)
        rows = branched(self._branches, inputs, lengths, positions, past, own)
        hidden = self.vlm.run(rows, cache)
        return hidden[:, inputs["input_ids"].shape[1] + self._branches.ends]

    def behind(self, head: Context, videos: Sequence[EncodedVideo]) -> torch.Tensor:
        """The same for videos behind what is read before them."""
        laid = self.vlm.video_rows(head.position, videos, [self.tail] * len(videos))
        cache = head.fork(len(videos)).cache
        return self.states(cache, head.length, laid.inputs, laid.lengths, laid.next_positions)

    def texts(
        self, cache: Cache, past: int, texts: Sequence[torch.Tensor], at: int
    ) -> torch.Tensor:
        """The same for rows of text, (L,) each, from rotary position ``at`` on."""
        pad = self.vlm.tokenizer.pad_token_id or 0
        ids = pad_sequence(list(texts), batch_first=True, padding_value=pad)
        lengths = [len(text) for text in texts]
        inputs = self.vlm.text_inputs(ids, at)
        return self.states(cache, past, inputs, lengths, [at + length for length in lengths])


def of_videos(
    turns: Turns, videos: Sequence[EncodedVideo], keep: float | None = None
) -> torch.Tensor:
    """States before each category's boolean, (B, C, D), behind videos under a policy; gradients flow.

    Args:
        turns: model, policy, question.
        videos: one a row.
        keep: share of the videos' tokens that stay.
    """
    asked = torch.cat([turns.question, turns.closing])
    opening, categories = turns.opening(keep), turns.policy.categories
    if not isinstance(opening, ParallelPrompt):
        head = head_context(turns.vlm, opening)
        return _Openings(turns.vlm, asked, categories).behind(head, videos)

    def spans(past: int) -> Sequence[Span]:
        return opening.spans(past + len(turns.question))

    openings = _Openings(turns.vlm, asked, categories, spans)
    if not opening.shares_head:
        found: dict[int, torch.Tensor] = {}
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        contexts = opening.contexts(videos)
        for row, context in enumerate(contexts):
            alike[context.length, context.position].append(row)
        for (past, position), rows in alike.items():
            cache = Context.stack([contexts[row] for row in rows]).cache
            told = openings.texts(cache, past, [openings.tail] * len(rows), position)
            found |= dict(zip(rows, told, strict=True))
        return torch.stack([found[row] for row in range(len(videos))])
    return openings.behind(head_context(turns.vlm, opening), videos)


def of_questions(
    vlm: VisionLanguageModel, videos: Sequence[EncodedVideo], phrases: Sequence[str]
) -> torch.Tensor:
    """States before the boolean of each phrase, (B, C, D), behind videos without a policy; gradients flow.

    A phrase stands where a category's name would: what is learned is to see what words say.
    """
    chat = vlm.layout(_QUESTION)
    categories = [Category("asked", phrase, "", ()) for phrase in phrases]
    openings = _Openings(vlm, vlm.ids(chat.tail + chat.closing), categories)
    return openings.behind(head_context(vlm, vlm.ids(vlm.layout("").head)), videos)


def log_odds(vlm: VisionLanguageModel, states: torch.Tensor) -> torch.Tensor:
    """Of true against false, (B, C)."""
    both: torch.Tensor = F.linear(states, vlm.model.lm_head.weight[true_and_false(vlm)]).float()
    return both[..., 0] - both[..., 1]


def balanced_loss(
    vlm: VisionLanguageModel, states: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Cross-entropy of booleans over the vocabulary, in which all that is true weighs as much as all that is false.

    What is true is rare, and answering by that alone is the first that a model learns and the last that it leaves.

    Args:
        vlm: gives the head.
        states: of each group, (B, C, D).
        truth: of each group, bool (B, C).
    """
    told = torch.cat([part.flatten(0, 1) for part in states])
    is_true = torch.cat([part.flatten() for part in truth]).to(told.device)
    yes, no = true_and_false(vlm)
    losses = F.cross_entropy(
        vlm.model.lm_head(told).float(), torch.where(is_true, yes, no), reduction="none"
    )
    parts = [losses[is_true == kind].mean() for kind in (True, False) if (is_true == kind).any()]
    return torch.stack(parts).mean()
