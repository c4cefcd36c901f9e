"""The vision-language model: prefill and continue a cache, hidden states, logits.

Knows Hugging Face models, their chat template and their adapters; what differs from family to family
is the matter of `families`. Knows nothing of policies, probes or verdicts: it is handed texts and frames.

A prompt is laid out so that everything that repeats comes first (see docs/architecture.md)::

    [ head ........ | video ........ | tail ........ | continuation ........ ]
      once per policy  once per video   S1 reads here   S2 continues here

Rotary positions are always passed explicitly. A Qwen3-VL keeps a mutable ``rope_deltas`` that
silently spoils a continued cache when it is stale; with explicit positions it is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from safelens.branches import Branches, Span, branched
from safelens.families import family_of, refusal
from safelens.vlm_attention import group_heads
from safelens.vlm_cache import Context, Head, Prefilled
from safelens.vlm_cost import Spent, adapter_flops, head_flops
from safelens.vlm_inputs import ChatLayout, EncodedVideo, VideoRows, render_chat
from safelens.vlm_loading import (
    ModelLoadError,
    adapter_weights,
    check_adapter,
    check_weights,
    loading,
    lora_weights,
)
from safelens.vlm_patches import multiply_patches
from safelens.vlm_slots import Slots

__all__ = ["Context", "EncodedVideo", "ModelLoadError", "Prefilled", "VisionLanguageModel"]


class VisionLanguageModel:
    """A model with a cache that can be forked and continued.

    All methods that run the model take one lock, so threads that share an object are safe and run
    one after the other; use one object a process for parallel work.

    Args:
        model: a ``...ForConditionalGeneration`` of one of the `families`.
        processor: its processor.
        frame_pixels: pixels of a resized frame; its sides are whole patches.

    Attributes:
        family: what is particular to the model's family.

    Raises:
        ModelLoadError: the model is of another kind.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, *, frame_pixels: int = 448 * 448
    ) -> None:
        self.family = family_of(model, processor)
        group_heads(model)
        multiply_patches(model)
        self.model: Any = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.frame_pixels = frame_pixels
        self._lock = threading.RLock()
        self._adapters: dict[str, int] = {}
        self._on: str | None = None
        self._tuned: list[Any] = []

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
            if reason := refusal(config):
                raise ModelLoadError(f"{source}: {reason}")
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
        return int(self.family.text_config.hidden_size)

    @property
    def patch_shape(self) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the patches that the vision tower reads."""
        return self.family.patch_shape

    @cached_property
    def language_sha256(self) -> str:
        """Digest of the language model without adapters: its settings and weights, as they are held."""
        digest = hashlib.sha256(self.family.text_config.to_json_string().encode())
        for name, weight in self.model.model.language_model.state_dict().items():
            if ".lora_" not in name:
                head = f"{name.replace('.base_layer', '')} {weight.dtype} {tuple(weight.shape)}"
                digest.update(head.encode())
                digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def load_adapter(self, source: str | Path, name: str) -> None:
        """Load a LoRA adapter; it stays off until it is named in :meth:`extend` or :meth:`extend_slots`.

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
            parameters = dict(self.model.named_parameters())
            check_adapter(source, weights, name, parameters)
            self.adopt_adapter(name)

    def adopt_adapter(self, name: str) -> None:
        """Take a LoRA adapter that the model has already; it is off until it is named."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.model.disable_adapters()
        self.model.eval()
        self._adapters[name] = lora_weights(name, dict(self.model.named_parameters()))
        self._tuned = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]

    # -- texts and frames to inputs -------------------------------------------------------------

    def layout(self, user: str, *, system: str | None = None) -> ChatLayout:
        """Render a chat of one system message and one user turn (video, then text)."""
        return render_chat(
            self.processor,
            user,
            system,
            medium=self.family.medium,
            placeholder=self.family.placeholder,
        )

    def ids(self, text: str) -> torch.Tensor:
        """Token ids of a text, special tokens recognised, nothing added; shape (L,)."""
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        found: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return found

    @property
    def end_tokens(self) -> set[int]:
        """Ids of the tokens that end a turn."""
        end = self.model.generation_config.eos_token_id
        ends = set(end) if isinstance(end, list) else {end}
        return (ends | {self.tokenizer.eos_token_id}) - {None}

    def encode_videos(
        self, frames: Sequence[np.ndarray], timestamps: Sequence[np.ndarray]
    ) -> list[EncodedVideo]:
        """Turn clips into model inputs.

        Args:
            frames: a clip each, (T, H, W, 3) uint8.
            timestamps: a clip each, (T,) seconds.
        """
        fitted = [self.family.fit(f, self.frame_pixels) for f in frames]
        return self.family.encode(fitted, timestamps, self.ids)

    def text_inputs(self, ids: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
        """Keyword inputs of the library's model for rows of text.

        Args:
            ids: shape (B, L).
            start: rotary position of the first token.
        """
        rows, length = ids.shape
        positions = torch.arange(start, start + length, device=self.device)
        return {
            "input_ids": ids.to(self.device),
            "position_ids": positions.expand(*self.family.axes, rows, -1),
        }

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
        positions = torch.zeros((*self.family.axes, *ids.shape), dtype=torch.long)
        next_positions = []
        for i, (row, video) in enumerate(zip(rows, videos, strict=True)):
            ids[i, : len(row)] = row
            found = self.family.positions(row, video) + start
            positions[..., i, : len(row)] = found
            next_positions.append(int(found.max()) + 1)
        inputs = {"input_ids": ids, "position_ids": positions} | self.family.visual(videos)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        return VideoRows(inputs["input_ids"], inputs, lengths, next_positions)

    # -- the cache ------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill_text(self, text: str) -> Context:
        """Run a text from nothing: the head of a prompt, once per policy."""
        context = Context.empty(self.model.config)
        with self.only(None):
            self.read(context, self.ids(text)[None])
        return context

    @torch.inference_mode()
    def prefill_videos(self, head: Head, videos: Sequence[EncodedVideo], tail: str) -> Prefilled:
        """Continue a shared head with one video and the tail a row, in one batch.

        The head is left as it was. Rows are right padded: in a causal model no real token sees
        padding that comes after it, so no mask is needed and single and batched runs agree.
        """
        tail_ids = self.ids(tail)
        with self.only(None):
            rows = self.video_rows(head.position, videos, [tail_ids] * len(videos))
            cache = head.fork(len(videos)).cache
            with self._seeing() as seen:
                hidden = self.run(rows.inputs, cache)
        spent = [Spent(prompt=length) for length in rows.lengths]
        for meter, video in zip(spent, videos, strict=True):
            meter.flops = self.family.language_flops(meter.prompt, head.length)
            meter.flops += self.family.vision_flops(*video.grid[0].tolist())
        merged = self.family.merge**2
        return Prefilled(
            hidden=hidden,
            lengths=rows.lengths,
            tail_length=tail_ids.shape[0],
            head_length=head.length,
            spent=spent,
            vision=torch.cat(seen).split([len(v.pixels) // merged for v in videos]),
            _cache=cache,
            _positions=rows.next_positions,
            _starts=[position - len(tail_ids) for position in rows.next_positions],
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
        with self.only(adapter):
            ids = ids.expand(context.rows, -1) if ids.ndim == 1 else ids
            return self.read(context, ids, adapter=adapter)

    @torch.inference_mode()
    def extend_branches(
        self, context: Context, branches: Branches, own: Sequence[Span] = ()
    ) -> torch.Tensor:
        """Continue a context of one row with several texts, none of which sees another.

        Args:
            context: is used up; it costs no copy.
            branches: the texts; only for models without convolutions, which reach from one into the next.
            own: parts of the context that one text alone sees; see :meth:`Branches.past_seen`.

        Returns:
            Hidden states of each text's last token, shape (C, D).
        """
        past, stem = context.length, len(branches.stem)
        at = context.position + stem
        inputs = self.text_inputs(branches.stem[None], context.position)
        with self.only(None):
            rows = branched(branches, inputs, [stem], [at], past, own)
            hidden = self.run(rows, context.cache)
        context.spent.prompt += stem + len(branches.ids)
        self.charge(context.spent, stem, past)
        ends = branches.ends
        seen = branches.past_seen(past, own).sum(1)[ends].tolist()
        for part, keys in zip(branches.parts, seen, strict=True):
            self.charge(context.spent, len(part), keys + stem)
        return hidden[0, stem + ends]

    @torch.inference_mode()
    def extend_slots(
        self, slots: Slots, rows: slice, ids: torch.Tensor, *, adapter: str | None = None
    ) -> torch.Tensor:
        """Continue sequences of unequal length by as many text tokens each; gives hidden states (B, L, D).

        The sequences keep their lengths until :meth:`Slots.advance` is called: what is not counted there is
        overwritten by the next pass.

        Args:
            slots: the sequences.
            rows: which of them, B one after the other.
            ids: shape (B, L).
            adapter: LoRA adapter that is switched on for these tokens.

        Raises:
            ValueError: no adapter of that name is loaded.
        """
        with self.only(adapter):
            positions, seen = slots.open(rows, ids.shape[1], self.device)
            mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
            inputs = {
                "input_ids": ids.to(self.device),
                "position_ids": positions.expand(*self.family.axes, *positions.shape),
                "attention_mask": mask.masked_fill_(~seen, torch.finfo(mask.dtype).min),
            }
            return self.run(inputs, slots.cache)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits (..., V) of hidden states (..., D), in float32 or better."""
        logits = self.model.lm_head(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def choice(self, logits: torch.Tensor, options: tuple[str, str]) -> torch.Tensor:
        """Probability of the first of two options as the next token, the two taken together.

        Args:
            logits: (B, V), before the choice.
            options: two texts whose first tokens differ.

        Returns:
            Shape (B,).

        Raises:
            ValueError: the options begin with the same token.
        """
        one, other = (int(self.ids(option)[0]) for option in options)
        if one == other:
            raise ValueError(f"options {options!r} begin with the same token; use others")
        return logits[:, [one, other]].softmax(-1)[:, 0]

    def charge(
        self, spent: Spent, tokens: int, past: int, *, read: int = 0, adapter: str | None = None
    ) -> None:
        """Charge a sequence the operations of new tokens behind those that its cache holds.

        Args:
            spent: of the sequence.
            tokens: new ones.
            past: those in the cache.
            read: how many of them have their logits read.
            adapter: the adapter that is on for them.
        """
        spent.flops += self.family.language_flops(tokens, past)
        spent.flops += head_flops(self.family.text_config, read)
        if adapter is not None:
            spent.flops += adapter_flops(self._adapters[adapter], tokens)

    def run(self, inputs: Mapping[str, torch.Tensor], cache: Cache | None = None) -> torch.Tensor:
        """Last hidden states (B, L, D) of one pass of the library's model; gradients flow if they may.

        Args:
            inputs: of :meth:`text_inputs` or :meth:`video_rows`.
            cache: is continued in place.
        """
        found: torch.Tensor = self.model.model(
            **inputs, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return found

    def read(
        self, context: Context, ids: torch.Tensor, *, adapter: str | None = None
    ) -> torch.Tensor:
        """Continue a context in place with text tokens, as the model is now; gradients flow if they may.

        Args:
            context: its cache and position are advanced.
            ids: shape (B, L).
            adapter: is charged for; it is on already.

        Returns:
            Hidden states, shape (B, L, D).
        """
        rows, length = ids.shape
        past = context.length
        hidden = self.run(self.text_inputs(ids, context.position), context.cache)
        context.position += length
        context.spent.prompt += rows * length
        for _ in range(rows):
            self.charge(context.spent, length, past, adapter=adapter)
        return hidden

    # -- inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def attended(self, layer: int) -> Iterator[list[torch.Tensor]]:
        """Collects what a layer's attention is given, pass by pass, shape (B, L, D)."""
        given: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, named: dict[str, Any]) -> None:
            given.append(named["hidden_states"])

        handle = self.family.attention(layer).register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield given
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _seeing(self) -> Iterator[list[torch.Tensor]]:
        """Collects what the vision tower gives the language model, tokens (N, D) of images in order."""
        seen: list[torch.Tensor] = []

        def keep(_projector: Any, _inputs: Any, output: Any) -> None:
            tokens = output if isinstance(output, torch.Tensor) else output.pooler_output
            seen.append(tokens.reshape(-1, tokens.shape[-1]))

        handle = self.family.projector.register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    @contextlib.contextmanager
    def only(self, adapter: str | None) -> Iterator[None]:
        """Exactly this adapter on, or none, and the model to oneself, for passes that follow each other.

        Raises:
            ValueError: no adapter of that name is loaded.
        """
        with self._lock:
            before = self._on
            self._switch(adapter)
            try:
                yield
            finally:
                self._switch(before)

    def _switch(self, adapter: str | None) -> None:
        if adapter == self._on:
            return
        if adapter is not None and adapter not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise ValueError(f"adapter {adapter!r} is not loaded; loaded: {known}")
        # layer by layer: the library's own switch looks for all of them, and peft's version, every time
        for layer in self._tuned:
            if adapter is not None:
                layer.set_adapter(adapter)
            layer.enable_adapters(adapter is not None)
        self._on = adapter
