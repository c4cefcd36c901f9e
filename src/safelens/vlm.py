"""The vision-language model: prefill, fork and continue a cache, hidden states, guided decoding.

Knows Hugging Face models of the Qwen3-VL kind, their chat template, their rotary positions and their
key/value cache. Knows nothing of policies, probes or verdicts: it is handed texts and frames.

A prompt is laid out so that everything that repeats comes first (see docs/architecture.md)::

    [ head ........ | video ........ | tail ........ | continuation ........ ]
      once per policy  once per video   S1 reads here   S2 continues here

Rotary positions are always passed explicitly. The model object keeps a mutable ``rope_deltas`` that
silently spoils a continued cache when it is stale; with explicit positions it is never read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor, DynamicCache
from transformers.modeling_utils import PreTrainedModel

from safelens.vlm_cost import Spent, language_flops, vision_flops
from safelens.vlm_inputs import (
    ChatLayout,
    EncodedVideo,
    ModelLoadError,
    VideoRows,
    fit_frames,
    loading,
)

_END_OF_TEXT = "\u241e"  # stands where the user's text ends while a chat template is rendered
VIDEO_PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"


@dataclass
class Context:
    """A cache and where the next token goes.

    Attributes:
        cache: keys and values of B sequences of the same length.
        position: rotary position of the next text token.
        spent: what these sequences have cost.
    """

    cache: DynamicCache
    position: int
    spent: Spent = field(default_factory=Spent)

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return self.cache.get_seq_length()

    def select(self, row: int, tokens: Sequence[tuple[int, int]]) -> Context:
        """One row, with only the tokens of the given [start, end) ranges, at their true positions."""

        def cut(states: torch.Tensor) -> torch.Tensor:
            return torch.cat([states[row : row + 1, :, a:b] for a, b in tokens], dim=2)

        pairs = [(cut(layer.keys), cut(layer.values)) for layer in self.cache.layers]
        return Context(DynamicCache(pairs), self.position)

    @staticmethod
    def stack(contexts: Sequence[Context]) -> Context:
        """Rows of equal length and position as one batch."""
        pairs = [
            (torch.cat([layer.keys for layer in layers]), torch.cat([layer.values for layer in layers]))
            for layers in zip(*(c.cache.layers for c in contexts), strict=True)
        ]
        return Context(DynamicCache(pairs), contexts[0].position)


@dataclass
class Prefilled:
    """What a batch of videos left behind after prefill; rows are [head | video | tail | padding].

    Attributes:
        hidden: last hidden states of the new tokens, shape (B, L, D).
        lengths: real new tokens of each row.
        tail_length: how many of a row's last real tokens are the tail.
        head_length: tokens of the shared head.
    """

    hidden: torch.Tensor
    lengths: list[int]
    tail_length: int
    head_length: int
    _cache: DynamicCache
    _positions: list[int]
    _spent: list[Spent]
    _videos: list[EncodedVideo]

    def context(self, row: int) -> Context:
        """The cache of one row, without its padding, ready to be continued."""
        whole = Context(self._cache, self._positions[row])
        found = whole.select(row, [(0, self.head_length + self.lengths[row])])
        found.spent = self._spent[row]
        return found

    def tail_states(self, row: int, last: int) -> torch.Tensor:
        """States of the tail's last tokens, at most ``last`` of them, shape (T, D)."""
        end = self.lengths[row]
        return self.hidden[row, end - min(last, self.tail_length) : end]

    def video_states(self, row: int) -> torch.Tensor:
        """States of the video's tokens (no timestamps), shape (steps * tokens, D)."""
        blocks = self._videos[row].blocks
        return torch.cat([self.hidden[row, a + 1 : b - 1] for a, b in blocks])

    def moments(self, row: int) -> list[Context]:
        """For each temporal step of the video, the head and that step's block alone, before the tail.

        Blocks keep their true positions, and have seen what came before them: they were cut from
        the video's own cache. The tail can be run again on each.
        """
        whole = Context(self._cache, self._positions[row] - self.tail_length)
        base = self.head_length
        return [
            whole.select(row, [(0, base), (base + a, base + b)])
            for a, b in self._videos[row].blocks
        ]


class VisionLanguageModel:
    """A Qwen3-VL-like model with a cache that can be forked and continued.

    All methods that run the model take one lock, so threads that share an object are safe and run
    one after the other; use one object a process for parallel work.

    Args:
        model: a ``Qwen3VLForConditionalGeneration`` or compatible model.
        processor: its processor.
        frame_pixels: pixels of a frame after resizing; the aspect ratio is kept and sides are
            rounded to whole merged patches.

    Raises:
        ModelLoadError: the model is of another kind.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, *, frame_pixels: int = 448 * 448
    ) -> None:
        if not hasattr(model, "model") or not hasattr(model.model, "get_rope_index"):
            raise ModelLoadError(
                f"{type(model).__name__} is not a Qwen3-VL-like model (it has no get_rope_index); "
                "use a Qwen3-VL model or a fine-tuned one"
            )
        self.model: Any = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.frame_pixels = frame_pixels
        self._lock = threading.RLock()
        self._adapters: set[str] = set()
        vision = model.config.vision_config
        self._factor = int(vision.patch_size) * int(vision.spatial_merge_size)
        self._video_token: int = model.config.video_token_id
        # transformers 5.20 and later warn when this is unset; frames arrive resized
        processor.video_processor.cap_pixels_per_frame = False

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        frame_pixels: int = 448 * 448,
    ) -> VisionLanguageModel:
        """Load a model and its processor from a directory or the model hub.

        Args:
            source: directory or hub id.
            device: where it runs.
            dtype: weights' type; float32 on a CPU and bfloat16 elsewhere by default.
            frame_pixels: see the class.

        Raises:
            ModelLoadError: unreachable, damaged or of another kind.
        """
        from transformers import AutoModelForImageTextToText

        device = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        with loading(source):
            config = AutoConfig.from_pretrained(source)
            if not hasattr(config, "vision_config"):
                raise ModelLoadError(
                    f"{source}: model type {config.model_type!r} has no vision tower; "
                    "expected a Qwen3-VL-like model"
                )
            processor = AutoProcessor.from_pretrained(source)
            model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
        return cls(model.to(device), processor, frame_pixels=frame_pixels)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    def load_adapter(self, source: str | Path, name: str) -> None:
        """Load a LoRA adapter; it stays off until it is named in :meth:`extend` or :meth:`decode`.

        Raises:
            ModelLoadError: the adapter is missing or does not fit the model.
        """
        with self._lock, loading(source):
            self.model.load_adapter(str(source), adapter_name=name)
            self.model.disable_adapters()
            self.model.eval()
            self._adapters.add(name)

    # -- texts and frames to inputs -------------------------------------------------------------

    def layout(self, user: str, *, system: str | None = None) -> ChatLayout:
        """Render a chat of one system message and one user turn (video, then text)."""
        messages: list[dict[str, Any]] = []
        if system is not None:
            messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
        content = [{"type": "video"}, {"type": "text", "text": user + _END_OF_TEXT}]
        messages.append({"role": "user", "content": content})
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        head, found, rest = text.partition(VIDEO_PLACEHOLDER)
        if not found:
            raise ModelLoadError(
                f"the chat template does not write {VIDEO_PLACEHOLDER!r} for a video; "
                "a Qwen3-VL chat template was expected"
            )
        tail, _, closing = rest.partition(_END_OF_TEXT)
        return ChatLayout(head, tail, closing)

    def ids(self, text: str) -> torch.Tensor:
        """Token ids of a text, special tokens recognised, nothing added; shape (L,)."""
        return torch.tensor(
            self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long
        )

    def encode_videos(
        self, frames: Sequence[np.ndarray], timestamps: Sequence[np.ndarray]
    ) -> list[EncodedVideo]:
        """Turn clips into model inputs.

        Args:
            frames: a clip each, (T, H, W, 3) uint8, T >= 2.
            timestamps: a clip each, (T,) seconds.
        """
        out = self.processor.video_processor(
            videos=[fit_frames(f, self.frame_pixels, self._factor) for f in frames],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        grids: torch.Tensor = out["video_grid_thw"]
        pixels = out["pixel_values_videos"].split(grids.prod(-1).tolist())
        return [
            self._encoded(times, grid, patches)
            for times, grid, patches in zip(timestamps, grids, pixels, strict=True)
        ]

    def _encoded(self, timestamps: np.ndarray, grid: torch.Tensor, pixels: torch.Tensor) -> EncodedVideo:
        """A timestamp before each block of placeholders, as Qwen3-VL's own processor writes it."""
        config = self.model.config
        steps, height, width = (int(n) for n in grid)
        per = int(config.vision_config.temporal_patch_size)
        times = [float(t) for t in timestamps]
        times += [times[-1]] * (-len(times) % per)
        merged = height * width // int(config.vision_config.spatial_merge_size) ** 2
        block = [
            config.vision_start_token_id,
            *[self._video_token] * merged,
            config.vision_end_token_id,
        ]
        ids: list[int] = []
        blocks = []
        for i in range(steps):
            middle = (times[i * per] + times[i * per + per - 1]) / 2
            ids += self.tokenizer.encode(f"<{middle:.1f} seconds>", add_special_tokens=False)
            blocks.append((len(ids), len(ids) + len(block)))
            ids += block
        return EncodedVideo(torch.tensor(ids), pixels, grid[None], tuple(blocks))

    # -- the cache ------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill_text(self, text: str) -> Context:
        """Run a text from nothing: the head of a prompt, once per policy."""
        with self._lock, self._only(None):
            ids = self.ids(text).to(self.device)
            context = Context(DynamicCache(config=self.model.config), 0)
            self._run(ids[None], self._text_positions(ids.shape[0], 0, 1), context.cache)
            self._count([context.spent], [ids.shape[0]], 0)
            context.position = ids.shape[0]
            return context

    @torch.inference_mode()
    def prefill_videos(
        self, head: Context, videos: Sequence[EncodedVideo], tail: str
    ) -> Prefilled:
        """Continue a shared head with one video and the tail a row, in one batch.

        The head is left as it was. Rows are right padded: in a causal model no real token sees
        padding that comes after it, so no mask is needed and single and batched runs agree.
        """
        with self._lock, self._only(None):
            tail_ids = self.ids(tail)
            rows = self.video_rows(head.position, videos, [tail_ids] * len(videos))
            cache = self.fork(head, len(videos)).cache
            hidden = self._run(
                rows.ids,
                rows.positions,
                cache,
                pixel_values_videos=rows.pixels,
                video_grid_thw=rows.grids,
            )
            spent = [Spent() for _ in videos]
            self._count(spent, rows.lengths, head.length)
            for meter, video in zip(spent, videos, strict=True):
                grid = [int(n) for n in video.grid[0]]
                meter.flops += vision_flops(self.model.config.vision_config, *grid)
            return Prefilled(
                hidden=hidden,
                lengths=rows.lengths,
                tail_length=tail_ids.shape[0],
                head_length=head.length,
                _cache=cache,
                _positions=rows.next_positions,
                _spent=spent,
                _videos=list(videos),
            )

    def fork(self, context: Context, rows: int = 1) -> Context:
        """Copy a context, repeated over ``rows``; the copy can be continued freely."""
        pairs = [
            (layer.keys.repeat_interleave(rows, 0), layer.values.repeat_interleave(rows, 0))
            for layer in context.cache.layers
        ]
        return Context(DynamicCache(pairs), context.position)

    @torch.inference_mode()
    def extend(
        self, context: Context, ids: torch.Tensor, *, adapter: str | None = None
    ) -> torch.Tensor:
        """Continue a context in place with text tokens; returns their hidden states (B, L, D).

        Args:
            context: its cache and position are advanced.
            ids: (L,), the same for each row, or (B, L).
            adapter: LoRA adapter that is switched on for these tokens.
        """
        with self._lock, self._only(adapter):
            rows = context.cache.layers[0].keys.shape[0]
            ids = ids.to(self.device)
            ids = ids.expand(rows, -1) if ids.ndim == 1 else ids
            positions = self._text_positions(ids.shape[1], context.position, rows)
            self._count([context.spent] * rows, [ids.shape[1]] * rows, context.length)
            hidden = self._run(ids, positions, context.cache)
            context.position += ids.shape[1]
            return hidden

    def crop(self, context: Context, tokens: int) -> None:
        """Take the last ``tokens`` text tokens off a context."""
        if tokens:
            context.cache.crop(-tokens)
            context.position -= tokens

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits (..., V) of hidden states (..., D), in float32."""
        return self.model.lm_head(hidden).float()

    def decode(
        self,
        context: Context,
        hidden: torch.Tensor,
        *,
        max_new_tokens: int,
        stop: str,
        adapter: str | None = None,
    ) -> str:
        """Greedy decoding until the end-of-turn token, the ``stop`` text or the budget.

        The context is left just before ``stop`` (or the end token), so that it can be continued.

        Args:
            context: batch size 1; its last token's logits are those of ``hidden``.
            hidden: hidden states of which the last is read, shape (1, L, D).
            max_new_tokens: budget; reaching it is no error.
            stop: text at which decoding ends; it is neither returned nor left in the cache.
            adapter: LoRA adapter that is switched on.
        """
        end = self._end_tokens()
        ids: list[int] = []
        with self._lock:
            while len(ids) < max_new_tokens:
                token = int(self.logits(hidden[:, -1]).argmax())
                if token in end:
                    break
                ids.append(token)
                hidden = self.extend(context, torch.tensor([token]), adapter=adapter)
                context.spent.prompt -= 1
                context.spent.generated += 1
                if (at := self._text(ids).find(stop)) >= 0:
                    keep = max(n for n in range(len(ids)) if len(self._text(ids[:n])) <= at)
                    self.crop(context, len(ids) - keep)
                    ids = ids[:keep]
                    break
        return self._text(ids)

    def choice_probability(self, hidden: torch.Tensor, options: tuple[str, str]) -> torch.Tensor:
        """Probability of the first of two options as the next token, the two taken together.

        Args:
            hidden: (B, D), states of the tokens before the choice.
            options: two texts whose first tokens differ.

        Returns:
            Shape (B,), float32.

        Raises:
            ValueError: the options begin with the same token.
        """
        one, other = (int(self.ids(option)[0]) for option in options)
        if one == other:
            raise ValueError(f"options {options!r} begin with the same token; use others")
        return self.logits(hidden)[:, [one, other]].softmax(-1)[:, 0]

    def video_rows(
        self, start: int, videos: Sequence[EncodedVideo], tails: Sequence[torch.Tensor]
    ) -> VideoRows:
        """Lay out rows of [video | tail], right padded, with explicit rotary positions.

        Args:
            start: rotary position of the first token (the head's length).
            videos: one a row.
            tails: token ids after each video.
        """
        rows = [torch.cat([v.ids, t]) for v, t in zip(videos, tails, strict=True)]
        lengths = [len(r) for r in rows]
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), max(lengths)), pad, dtype=torch.long)
        positions = torch.zeros((3, len(rows), max(lengths)), dtype=torch.long)
        next_positions = []
        for i, (row, video) in enumerate(zip(rows, videos, strict=True)):
            ids[i, : len(row)] = row
            spans, _ = self.model.model.get_rope_index(
                row[None],
                mm_token_type_ids=(row == self._video_token).int()[None] * 2,
                video_grid_thw=video.grid,
            )
            positions[:, i, : len(row)] = spans[:, 0] + start
            next_positions.append(int(spans.max()) + 1 + start)
        return VideoRows(
            ids=ids.to(self.device),
            positions=positions.to(self.device),
            pixels=torch.cat([v.pixels for v in videos]).to(self.device),
            grids=torch.cat([v.grid for v in videos]).to(self.device),
            lengths=lengths,
            next_positions=next_positions,
        )

    # -- inside -----------------------------------------------------------------------------------

    def _run(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: DynamicCache, **visual: torch.Tensor
    ) -> torch.Tensor:
        return self.model.model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, **visual
        ).last_hidden_state

    def _count(self, spent: Sequence[Spent], lengths: Sequence[int], past: int) -> None:
        config = self.model.config.get_text_config()
        for meter, length in zip(spent, lengths, strict=True):
            meter.prompt += length
            meter.flops += language_flops(config, length, past)

    def _text_positions(self, length: int, start: int, rows: int) -> torch.Tensor:
        positions = torch.arange(start, start + length, device=self.device)
        return positions.view(1, 1, -1).expand(3, rows, -1)

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _end_tokens(self) -> set[int]:
        end = self.model.generation_config.eos_token_id
        ends = set(end) if isinstance(end, list) else {end}
        return (ends | {self.tokenizer.eos_token_id}) - {None}

    @contextlib.contextmanager
    def _only(self, adapter: str | None) -> Iterator[None]:
        """Exactly this adapter on, or none."""
        if adapter is None:
            yield
            return
        if adapter not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise ValueError(f"adapter {adapter!r} is not loaded; loaded: {known}")
        self.model.enable_adapters()
        self.model.set_adapter(adapter)
        try:
            yield
        finally:
            self.model.disable_adapters()
