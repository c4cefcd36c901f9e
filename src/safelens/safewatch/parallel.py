"""The prompt whose policy is read category by category, and whose videos may be thinned.

Knows the two layouts. Blocks are made in `blocks`; which tokens stay is decided in `relevance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from safelens import prompts
from safelens.policy import Policy
from safelens.reading import Asked, Layout, ask_text
from safelens.safewatch.blocks import Block, PolicyBlocks, compose, read_block
from safelens.safewatch.relevance import most_relevant, relevance, relevance_flops
from safelens.vlm_cache import Context, Prefilled, states_of
from safelens.vlm_inputs import EncodedVideo

_BLOCKS = "\u241d"  # stands where the blocks go while a chat template is rendered


@dataclass
class _Read:
    """A video with the policy read before or behind it, and not yet the question.

    Attributes:
        context: holds [.. | video | ..].
        hidden: states of what was run behind the video, shape (1, L, D).
        blocks: the categories.
        start: rotary position at which a category behind the video stands.
    """

    context: Context
    hidden: torch.Tensor
    blocks: list[Block]
    start: int


class ParallelPrompt:
    """No category sees another, all stand at the same positions, and the question sees all. See :class:`Prompt`.

    - ``policy_first``: blocks are read behind the system message's opening, once for all videos and policies.
    - ``video_first``: blocks are read behind each video, which they see, so none can be kept for another.

    Whatever lists categories one after the other, the request's scores and the answer, does so by name,
    and so do blocks lie in the cache: the policy's own order has no effect at all.

    Args:
        blocks: of the model.
        policy: gives the categories.
        layout: order of the prompt.
        keep: share of a video's tokens that stay in its cache (see `most_relevant`); None keeps all.
    """

    def __init__(
        self,
        blocks: PolicyBlocks,
        policy: Policy,
        *,
        layout: Layout = "policy_first",
        keep: float | None = None,
    ) -> None:
        self.blocks, self.vlm = blocks, blocks.vlm
        self.policy, self.keep = policy.by_name(), keep
        self._layer = blocks.layer
        texts = [prompts.category_block(category) for category in self.policy.categories]
        intro, question = prompts.policy_intro() + _BLOCKS, prompts.open_question()
        self._before: list[Block] = []
        self._behind: list[torch.Tensor] = []
        if layout == "policy_first":
            self.parts = self.vlm.layout(question, system=intro)
            trunk, _, rest = self.parts.head.partition(_BLOCKS)
            context, self._before = blocks.of(trunk, texts)
            self.head = compose(context, self._before)
            self.vlm.extend(self.head, self.vlm.ids(rest))
            self._tail = self.vlm.ids(self.parts.tail)
        else:
            self.parts = self.vlm.layout(intro + question)
            trunk, _, rest = self.parts.tail.partition(_BLOCKS)
            self.head = self.vlm.prefill_text(self.parts.head)
            self._trunk = self.vlm.ids(trunk)
            self._behind = [self.vlm.ids(text) for text in texts]
            self._tail = self.vlm.ids(rest)

    @torch.inference_mode()
    def prefill(self, videos: Sequence[EncodedVideo]) -> Prefilled:
        """See :class:`Prompt`."""
        if self._before and self.keep is None:
            return self.vlm.prefill_videos(self.head, videos, self.parts.tail)
        seen = self.vlm.prefill_videos(self.head, videos, "")
        return Prefilled.stack([self._asked(seen, row) for row in range(len(videos))])

    @torch.inference_mode()
    def ask(self, moments: Sequence[Context]) -> list[Asked]:
        """See :class:`Prompt`; behind a moment, blocks see that moment."""
        return ask_text(self.vlm, [self._read(moment).context for moment in moments], self._tail)

    def _read(self, context: Context) -> _Read:
        """The policy behind [head | video], where it does not stand before it; the context is used up."""
        start = context.position
        if self._before:
            hidden = torch.empty(1, 0, self.vlm.hidden_size, dtype=self.vlm.model.dtype)
            return _Read(context, hidden.to(self.vlm.device), self._before, start)
        end = context.length
        states = [self.vlm.extend(context, self._trunk)]
        start = context.position
        blocks = []
        for ids in self._behind:
            block, own = read_block(self.vlm, context, ids, self._layer)
            blocks.append(block)
            states.insert(-1, own)
        # the trunk goes last: see `blocks`
        video, trunk = (context.select(0, [part]) for part in ((0, end), (end, context.length)))
        longest = max(len(ids) for ids in self._behind)
        whole = Context.join([video, *(b.held for b in blocks), trunk], start + longest)
        whole.spent = context.spent
        return _Read(whole, torch.cat(states, dim=1), blocks, start)

    def _asked(self, seen: Prefilled, row: int) -> Prefilled:
        """A row with policy, if it is not there yet, and question behind it; thinned, if it is to be."""
        read = self._read(seen.context(row))
        kept, found = None, None
        if self.keep is not None:
            kept, found = self._thinned(seen, row, read, self.keep)
        tail = self.vlm.extend(read.context, self._tail)
        return seen.asked(
            row,
            read.context,
            torch.cat([read.hidden, tail], dim=1),
            tail_length=len(self._tail),
            kept=kept,
            relevance=found,
        )

    def _thinned(
        self, seen: Prefilled, row: int, read: _Read, keep: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take video tokens out of the cache; which of the row's tokens stay, and all tokens' relevance.

        Times and what opens and closes a frame stay, and so does what a convolution still reaches.
        """
        ids = seen.ids(row).to(self.vlm.device)
        visual = ids == self.vlm.family.visual_token
        places = visual.nonzero()[:, 0]
        keys = states_of(read.context.cache)[self._layer][0][0]
        queries = [block.queries for block in read.blocks]
        found = relevance(
            self.vlm.family,
            self._layer,
            queries,
            read.start,
            keys[:, seen.head_length + places],
        )
        read.context.spent.flops += relevance_flops(queries, len(places))
        kept = ~visual
        kept[places[most_relevant(found, keep)]] = True
        kept[len(ids) - self.vlm.family.reach :] = True
        whole = torch.ones(read.context.length, dtype=torch.bool, device=self.vlm.device)
        whole[seen.head_length : seen.head_length + len(ids)] = kept
        read.context = read.context.keep(whole.nonzero()[:, 0])
        return kept, found
