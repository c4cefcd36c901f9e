"""The prompt whose policy is read category by category, and whose videos may be thinned.

Knows the two layouts. Blocks are made in `blocks`; which tokens stay is decided in `relevance`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from safelens import prompts
from safelens.branches import Span
from safelens.policy import Policy
from safelens.reading import Asked, Layout, ask_text
from safelens.safewatch.blocks import Block, Blocks, compose, read_block
from safelens.safewatch.relevance import most_relevant, relevance, relevance_flops
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context, Joined, Prefilled, states_of
from safelens.vlm_inputs import ChatLayout, EncodedVideo

_BLOCKS = "\u241d"  # stands where the blocks go while a chat template is rendered


@dataclass(frozen=True)
class ParallelText:
    """The texts of a prompt whose categories are read alone.

    Attributes:
        policy: its categories by name.
        parts: the chat, cut where the video stands, with a mark where the categories stand.
        trunk: what each category is read behind; it stands behind the video where the categories do.
        rest: what stands between categories and video, if the categories stand before it; it is read with each
            video, as it sees the categories and would have to be read anew for each other set of them.
        question: what comes next behind video and policy.
    """

    policy: Policy
    parts: ChatLayout
    trunk: str
    rest: str
    question: str

    @classmethod
    def of(cls, vlm: VisionLanguageModel, policy: Policy, layout: Layout) -> ParallelText:
        """Render a model's chat."""
        intro, question = prompts.policy_intro() + _BLOCKS, prompts.open_question()
        if layout == "policy_first":
            parts = vlm.layout(question, system=intro)
            trunk, _, rest = parts.head.partition(_BLOCKS)
            return cls(policy.by_name(), parts, trunk, rest, parts.tail)
        parts = vlm.layout(intro + question)
        trunk, _, question = parts.tail.partition(_BLOCKS)
        return cls(policy.by_name(), parts, trunk, "", question)

    @property
    def blocks(self) -> list[str]:
        """The categories."""
        return [prompts.category_block(category) for category in self.policy.categories]


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
        blocks: where the categories are had from; it decides whether gradients flow through them.
        policy: gives the categories.
        layout: order of the prompt.
        keep: share of a video's tokens that stay in its cache (see `most_relevant`); None keeps all.
    """

    def __init__(
        self,
        blocks: Blocks,
        policy: Policy,
        *,
        layout: Layout = "policy_first",
        keep: float | None = None,
    ) -> None:
        self.blocks, self.vlm, self.keep = blocks, blocks.vlm, keep
        text = ParallelText.of(self.vlm, policy, layout)
        self.policy, self.parts = text.policy, text.parts
        self._layer = blocks.layer
        self._tail = self.vlm.ids(text.question)
        self._before: list[Block] = []
        self._behind: list[torch.Tensor] = []
        self._lead = self.vlm.ids(text.rest)
        if layout == "policy_first":
            trunk, self._before = blocks.of(text.trunk, text.blocks)
        else:
            trunk, _ = blocks.of(self.parts.head, [])
            self._trunk = self.vlm.ids(text.trunk)
            self._behind = [self.vlm.ids(block) for block in text.blocks]
        self.head = compose(trunk, self._before)

    def keeping(self, keep: float | None) -> Self:
        """The same prompt that thins videos to another share."""
        found = copy.copy(self)
        found.keep = keep
        return found

    @property
    def shares_head(self) -> bool:
        """Whether all that the question sees beside the video is the head, the same for all videos."""
        return bool(self._before) and self.keep is None

    @torch.inference_mode()
    def prefill(self, videos: Sequence[EncodedVideo]) -> Prefilled:
        """See :class:`Prompt`."""
        if self.shares_head:
            return self.vlm.prefill_videos(self.head, self.led(videos), self.parts.tail)
        seen = self.vlm.prefill_videos(self.head, self.led(videos), "")
        return Prefilled.stack([self._asked(seen, row) for row in range(len(videos))])

    @torch.inference_mode()
    def ask(self, moments: Sequence[Context]) -> list[Asked]:
        """See :class:`Prompt`; behind a moment, blocks see that moment."""
        return ask_text(self.vlm, [self._read(moment).context for moment in moments], self._tail)

    def spans(self, length: int) -> list[Span]:
        """See :class:`Prompt`."""
        lengths = [block.held.length for block in self._before] or [len(b) for b in self._behind]
        start = 0
        if self._behind:
            start = length - len(self._tail) - len(self._trunk) - sum(lengths)
        ends = [start + end for end in itertools.accumulate(lengths)]
        return [(end - size, end) for end, size in zip(ends, lengths, strict=True)]

    def led(self, videos: Sequence[EncodedVideo]) -> list[EncodedVideo]:
        """Videos with what stands between the head and them."""
        return [video.behind(self._lead) for video in videos]

    def opened(self) -> Context:
        """The head and what stands between it and a video: what a text without one may continue.

        Gradients flow if they may.
        """
        context = self.head.fork()
        if len(self._lead):
            self.vlm.read(context, self._lead[None])
        return context

    def contexts(self, videos: Sequence[EncodedVideo]) -> list[Context]:
        """Videos read, each with the policy, and thinned: what the question comes behind. Gradients flow if they may."""
        head = self.opened()
        rows = self.vlm.video_rows(head.position, videos, [self._tail[:0]] * len(videos))
        cache = head.fork(len(videos)).cache
        self.vlm.run(rows.inputs, cache)
        found = []
        for row, (video, position) in enumerate(zip(videos, rows.next_positions, strict=True)):
            held = [(0, head.length + len(video.ids))]
            read = self._read(Context(cache, position).select(row, held))
            if self.keep is not None:
                self._thin(read, video.ids, head.length, self.keep)
            found.append(read.context)
        return found

    def _read(self, context: Context) -> _Read:
        """The policy behind [head | video], where it does not stand before it; the context is used up."""
        start = context.position
        if self._before:
            hidden = torch.empty(1, 0, self.vlm.hidden_size, dtype=self.vlm.model.dtype)
            return _Read(context, hidden.to(self.vlm.device), self._before, start)
        end = context.length
        with self.vlm.only(None):
            states = [self.vlm.read(context, self._trunk[None])]
            start = context.position
            blocks = []
            for ids in self._behind:
                block, own = read_block(self.vlm, context, ids, self._layer)
                blocks.append(block)
                states.insert(-1, own)
        # the trunk goes last: see `blocks`
        video, trunk = (context.select(0, [part]) for part in ((0, end), (end, context.length)))
        longest = max(len(ids) for ids in self._behind)
        whole = Joined([video, *(b.held for b in blocks), trunk], start + longest).fork()
        whole.spent = context.spent
        return _Read(whole, torch.cat(states, dim=1), blocks, start)

    def _asked(self, seen: Prefilled, row: int) -> Prefilled:
        """A row with policy, if it is not there yet, and question behind it; thinned, if it is to be."""
        read = self._read(seen.context(row))
        kept, found = None, None
        if self.keep is not None:
            kept, found = self._thin(read, seen.ids(row), seen.head_length, self.keep)
        tail = self.vlm.extend(read.context, self._tail)
        return seen.asked(
            row,
            read.context,
            torch.cat([read.hidden, tail], dim=1),
            tail_length=len(self._tail),
            kept=kept,
            relevance=found,
        )

    def _thin(
        self, read: _Read, ids: torch.Tensor, before: int, keep: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take video tokens out of the cache; which of the row's tokens stay, and all tokens' relevance.

        Times and what opens and closes a frame stay, and so does what a convolution still reaches. What stays is
        a choice, through which no gradient flows; through what stays it does.

        Args:
            read: its context is replaced.
            ids: of the video's tokens and of what leads to it, shape (L,).
            before: tokens of the head.
            keep: share of the video's tokens.
        """
        ids = ids.to(self.vlm.device)
        visual = ids == self.vlm.family.visual_token
        places = visual.nonzero()[:, 0]
        with torch.no_grad():
            keys = states_of(read.context.cache)[self._layer][0][0]
            queries = [block.queries for block in read.blocks]
            found = relevance(
                self.vlm.family,
                self._layer,
                queries,
                read.start,
                keys[:, before + places],
            )
        read.context.spent.flops += relevance_flops(queries, len(places))
        kept = ~visual
        kept[places[most_relevant(found, keep)]] = True
        kept[len(ids) - self.vlm.family.reach :] = True
        whole = torch.ones(read.context.length, dtype=torch.bool, device=self.vlm.device)
        whole[before : before + len(ids)] = kept
        read.context = read.context.keep(whole.nonzero()[:, 0])
        return kept, found
