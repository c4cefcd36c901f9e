"""The vision-language model: prefill and continue a cache, hidden states, guided decoding.

Knows Hugging Face models of the Qwen3-VL kind, their chat template, their rotary positions and their
adapters. Knows nothing of policies, probes or verdicts: it is handed texts and frames.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor, DynamicCache
from transformers.modeling_utils import PreTrainedModel

from safelens.vlm_cache import Context, Prefilled
from safelens.vlm_cost import Spent, adapter_flops, head_flops, language_flops, vision_flops
from safelens.vlm_inputs import (
    ChatLayout,
    EncodedVideo,
    VideoRows,
    encode_blocks,
    fit_frames,
    render_chat,
)
from safelens.vlm_loading import (
    ModelLoadError,
    adapter_weights,
    check_adapter,
    check_weights,
    loading,
    lora_weights,
)

__all__ = ["Context", "EncodedVideo", "ModelLoadError", "Prefilled", "VisionLanguageModel"]


class VisionLanguageModel:
    """A Qwen3-VL-like model with a cache that can be forked and continued.

    All methods that run the model take one lock, so threads that share an object are safe and run
    one after the other; use one object a process for parallel work.

    Args:
        model: a ``Qwen3VLForConditionalGeneration`` or compatible model.
        processor: its processor.
        frame_pixels: pixels of a resized frame; its aspect is kept, its sides are whole patches.

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
        self._text_config: Any = model.config.get_text_config()
        others = set(getattr(self._text_config, "layer_types", None) or ()) - {"full_attention"}
        if others:
            raise ModelLoadError(
                f"{type(model).__name__} has layers of type {', '.join(sorted(others))}, whose cache "
                "cannot be cut by token; use a model of full attention, such as Qwen3-VL"
            )
        self.model: Any = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.frame_pixels = frame_pixels
        self._lock = threading.RLock()
        self._adapters: dict[str, int] = {}
        vision = model.config.vision_config
        self._factor = int(vision.patch_size) * int(vision.spatial_merge_size)
        self._video_token: int = model.config.video_token_id
        self._vision = torch.empty(0)
        self.model.model.visual.register_forward_hook(self._keep_vision)
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
        with loading(source) as (name, local):
            config = AutoConfig.from_pretrained(name, local_files_only=local)
            if not hasattr(config, "vision_config"):
                raise ModelLoadError(
                    f"{source}: model type {config.model_type!r} has no vision tower; "
                    "expected a Qwen3-VL-like model"
                )
            processor = AutoProcessor.from_pretrained(name, local_files_only=local)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, local_files_only=local, output_loading_info=True
            )
            model, info = loaded
            check_weights(source, info["missing_keys"])
            return cls(model.to(device), processor, frame_pixels=frame_pixels)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self._text_config.hidden_size)

    @property
    def patch_shape(self) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the patches that the vision tower reads."""
        vision = self.model.config.vision_config
        side = int(vision.patch_size)
        return int(vision.in_channels), int(vision.temporal_patch_size), side, side

    def load_adapter(self, source: str | Path, name: str) -> None:
        """Load a LoRA adapter; it stays off until it is named in :meth:`extend` or :meth:`decode`.

        Args:
            source: directory or hub id.
            name: what it is called from then on.

        Raises:
            ModelLoadError: the adapter is missing, was made for another model, or changes the
                vocabulary's head, which is read without adapters.
        """
        with self._lock, loading(source) as (found, local):
            weights = adapter_weights(found, local)
            self.model.load_adapter(str(weights.parent), adapter_name=name)
            self.model.to(self.device)
            self.model.disable_adapters()
            self.model.eval()
            parameters = dict(self.model.named_parameters())
            check_adapter(source, weights, name, parameters)
            self._adapters[name] = lora_weights(name, parameters)

    # -- texts and frames to inputs -------------------------------------------------------------

    def layout(self, user: str, *, system: str | None = None) -> ChatLayout:
        """Render a chat of one system message and one user turn (video, then text)."""
        return render_chat(self.processor, user, system)

    def ids(self, text: str) -> torch.Tensor:
        """Token ids of a text, special tokens recognised, nothing added; shape (L,)."""
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)

    def encode_videos(
        self, frames: Sequence[np.ndarray], timestamps: Sequence[np.ndarray]
    ) -> list[EncodedVideo]:
        """Turn clips into model inputs.

        Args:
            frames: a clip each, (T, H, W, 3) uint8.
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
            encode_blocks(self.model.config, self.ids, times, grid, patches)
            for times, grid, patches in zip(timestamps, grids, pixels, strict=True)
        ]

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

    # -- the cache ------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill_text(self, text: str) -> Context:
        """Run a text from nothing: the head of a prompt, once per policy."""
        context = Context(DynamicCache(config=self.model.config), 0)
        with self._lock, self._only(None):
            self._text(context, self.ids(text)[None])
        return context

    @torch.inference_mode()
    def prefill_videos(self, head: Context, videos: Sequence[EncodedVideo], tail: str) -> Prefilled:
        """Continue a shared head with one video and the tail a row, in one batch.

        The head is left as it was. Rows are right padded: in a causal model no real token sees
        padding that comes after it, so no mask is needed and single and batched runs agree.
        """
        tail_ids = self.ids(tail)
        with self._lock, self._only(None):
            rows = self.video_rows(head.position, videos, [tail_ids] * len(videos))
            cache = head.fork(len(videos)).cache
            hidden = self._run(
                rows.ids,
                rows.positions,
                cache,
                pixel_values_videos=rows.pixels,
                video_grid_thw=rows.grids,
            )
            vision = self._vision
        merged = self.model.config.vision_config.spatial_merge_size**2
        spent = [Spent(prompt=length) for length in rows.lengths]
        for meter, video in zip(spent, videos, strict=True):
            meter.flops = language_flops(self._text_config, meter.prompt, head.length)
            meter.flops += vision_flops(self.model.config.vision_config, *video.grid[0].tolist())
        return Prefilled(
            hidden=hidden,
            lengths=rows.lengths,
            tail_length=tail_ids.shape[0],
            head_length=head.length,
            spent=spent,
            vision=vision.split([len(v.pixels) // merged for v in videos]),
            _cache=cache,
            _positions=rows.next_positions,
            _videos=list(videos),
        )

    @torch.inference_mode()
    def extend(
        self, context: Context, ids: torch.Tensor, *, adapter: str | None = None
    ) -> torch.Tensor:
        """Continue a context in place with text tokens; returns their hidden states (B, L, D).

        Args:
            context: its cache and position are advanced.
            ids: (L,), the same for each row, or (B, L).
            adapter: LoRA adapter that is switched on for these tokens.

        Raises:
            ValueError: no adapter of that name is loaded.
        """
        with self._lock, self._only(adapter):
            ids = ids.expand(context.rows, -1) if ids.ndim == 1 else ids
            return self._text(context, ids, adapter=adapter)

    @torch.inference_mode()
    def decode(
        self,
        context: Context,
        hidden: torch.Tensor,
        *,
        max_new_tokens: int,
        stop: str | None = None,
        adapter: str | None = None,
    ) -> str:
        """Greedy decoding until the end-of-turn token, the ``stop`` text if any, or the budget.

        The context is left just before ``stop`` (or the end token), so that it can be continued.

        Args:
            context: batch size 1; its last token's logits are those of ``hidden``.
            hidden: hidden states of which the last is read, shape (1, L, D).
            max_new_tokens: budget; reaching it is no error.
            stop: text at which decoding ends; it is neither returned nor left in the cache.
            adapter: LoRA adapter that is switched on.

        Raises:
            ValueError: no adapter of that name is loaded.
        """
        end = self._end_tokens()
        ids: list[int] = []
        with self._lock, self._only(adapter):
            while len(ids) < max_new_tokens:
                token = int(self.logits(hidden[:, -1]).argmax())
                context.spent.flops += head_flops(self._text_config, 1)
                if token in end:
                    break
                ids.append(token)
                hidden = self._text(context, torch.tensor([[token]]), written=1, adapter=adapter)
                if stop is not None and (at := self._string(ids).find(stop)) >= 0:
                    keep = max(n for n in range(len(ids)) if len(self._string(ids[:n])) <= at)
                    context.crop(len(ids) - keep)
                    ids = ids[:keep]
                    break
        return self._string(ids)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits (..., V) of hidden states (..., D), in float32 or better."""
        logits = self.model.lm_head(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def choice_probability(
        self, hidden: torch.Tensor, options: tuple[str, str], spent: Spent
    ) -> torch.Tensor:
        """Probability of the first of two options as the next token, the two taken together.

        Args:
            hidden: (B, D), states of the tokens before the choice.
            options: two texts whose first tokens differ.
            spent: is charged the logits.

        Returns:
            Shape (B,).

        Raises:
            ValueError: the options begin with the same token.
        """
        one, other = (int(self.ids(option)[0]) for option in options)
        if one == other:
            raise ValueError(f"options {options!r} begin with the same token; use others")
        spent.flops += head_flops(self._text_config, len(hidden))
        return self.logits(hidden)[:, [one, other]].softmax(-1)[:, 0]

    # -- inside -----------------------------------------------------------------------------------

    def _text(
        self, context: Context, ids: torch.Tensor, *, written: int = 0, adapter: str | None = None
    ) -> torch.Tensor:
        """Run text tokens (B, L) on a context; ``written`` of each row's are the model's own.

        The adapter is only charged for: it is on already.
        """
        rows, length = ids.shape
        start = context.position
        positions = torch.arange(start, start + length, device=self.device)
        past = context.length
        hidden = self._run(ids.to(self.device), positions.expand(3, rows, -1), context.cache)
        context.position += length
        context.spent.prompt += rows * (length - written)
        context.spent.generated += rows * written
        context.spent.flops += rows * language_flops(self._text_config, length, past)
        if adapter is not None:
            context.spent.flops += adapter_flops(self._adapters[adapter], rows * length)
        return hidden

    def _keep_vision(self, _tower: Any, _inputs: Any, output: Any) -> None:
        self._vision = output.pooler_output

    def _run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache,
        **visual: torch.Tensor,
    ) -> torch.Tensor:
        return self.model.model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, **visual
        ).last_hidden_state

    def _string(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _end_tokens(self) -> set[int]:
        end = self.model.generation_config.eos_token_id
        ends = set(end) if isinstance(end, list) else {end}
        return (ends | {self.tokenizer.eos_token_id}) - {None}

    @contextlib.contextmanager
    def _only(self, adapter: str | None) -> Iterator[None]:
        """Exactly this adapter on, or none; the lock is held."""
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
