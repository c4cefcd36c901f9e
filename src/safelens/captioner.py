"""One frame in, one sentence out: Florence-2 as S2's eyes.

Knows Florence-2's prompts and how to run it greedily over a batch of frames. Does not know where
frames come from, or what is made of the sentences.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelens.captioner_cost import caption_flops
from safelens.verdict import Caption

if TYPE_CHECKING:
    import numpy as np
    import torch

    from safelens.video import Clip
    from safelens.vlm_cost import Spent

CAPTION_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
"""Florence-2's prompts whose answer is plain text, from short to long."""

DEFAULT_CAPTIONER = "florence-community/Florence-2-large"
"""Hub id of the weights used by the paper."""


class CaptionerError(RuntimeError):
    """A captioner that cannot be loaded; the message says what to do."""


class Captioner:
    """Florence-2 with its processor; safe to share between threads (calls wait for each other).

    Args:
        model: A `Florence2ForConditionalGeneration`, already on its device.
        processor: Its `Florence2Processor`.
        task: One of `CAPTION_TASKS`.
        max_new_tokens: Bound on the length of one caption, in tokens, at least 1.

    Raises:
        ValueError: Unknown `task`, or `max_new_tokens` below 1.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        task: str = "<DETAILED_CAPTION>",
        max_new_tokens: int = 96,
    ) -> None:
        if task not in CAPTION_TASKS:
            raise ValueError(f"task {task!r}: expected one of {', '.join(CAPTION_TASKS)}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1: {max_new_tokens}")
        from safelens.captioner_attention import attend_channels

        self.model = model.eval()
        attend_channels(self.model)
        self.processor = processor
        self.task = task
        self.max_new_tokens = max_new_tokens
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path_or_id: str | Path = DEFAULT_CAPTIONER,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        task: str = "<DETAILED_CAPTION>",
        max_new_tokens: int = 96,
    ) -> Captioner:
        """Load a captioner from a directory (no network used) or from the model hub.

        Args:
            path_or_id: Directory made by `save_pretrained` of model and processor, or a hub id.
            device: Where to run; the accelerator when there is one, else the CPU.
            dtype: Weights' type; bfloat16 on an accelerator and float32 on the CPU by default.
            task: One of `CAPTION_TASKS`.
            max_new_tokens: Bound on the length of one caption, in tokens.

        Raises:
            CaptionerError: Nothing there, hub out of reach, or not a Florence-2 model.
            ValueError: Unknown `dtype` or `task`.
        """
        import torch
        from huggingface_hub import HfApi
        from safetensors import SafetensorError

        name = str(path_or_id)
        local = Path(name).expanduser().is_dir()
        if not local and (Path(name).is_absolute() or name.startswith((".", "~"))):
            raise CaptionerError(
                f"captioner {name}: no such directory; expected config.json, weights and processor "
                f"files in it, or a hub id such as {DEFAULT_CAPTIONER}"
            )
        source = str(Path(name).expanduser()) if local else name
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        weights = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
        if not isinstance(weights, torch.dtype):
            raise ValueError(f"dtype {dtype!r}: expected float32, float16 or bfloat16")
        try:
            processor, model = _read(source, weights, local_only=True)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            if local:
                raise CaptionerError(_load_advice(name, local, error)) from error
            try:
                # Asked first because the loaders repeat a hopeless request for half a minute.
                HfApi().model_info(source, timeout=10)
                processor, model = _read(source, weights, local_only=False)
            except CaptionerError:
                raise
            except Exception as hub_error:
                raise CaptionerError(_load_advice(name, local, hub_error)) from hub_error
        return cls(model.to(device), processor, task=task, max_new_tokens=max_new_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def save(self, directory: str | Path) -> None:
        """Write weights and processor so that `load` reads them back."""
        self.model.save_pretrained(str(directory))
        self.processor.save_pretrained(str(directory))

    def caption(
        self,
        frames: Sequence[np.ndarray] | np.ndarray,
        batch_size: int | None = None,
    ) -> list[str]:
        """Describe each frame in words, greedily (the same frame always gives the same words).

        Args:
            frames: uint8 RGB, each (H, W, 3); their sizes may differ, and there may be none.
            batch_size: Frames per forward pass, at least 1; 8 on the CPU and 32 on an accelerator by default.

        Returns:
            A caption a frame, of clean text: one line, no special tokens. A caption that hits
            `max_new_tokens` ends at its last full sentence when it has one.

        Raises:
            ValueError: Frames of another shape or type, or `batch_size` below 1.
        """
        return [written.text for written in self._written(frames, batch_size)]

    def describe(
        self,
        clips: Sequence[Clip],
        batch_size: int | None = None,
        spent: Sequence[Spent] | None = None,
    ) -> list[tuple[Caption, ...]]:
        """Of each clip one caption per frame, with its time (Algorithm 1, line 14).

        Args:
            clips: Frames of several share a forward pass.
            batch_size: Frames per forward pass, as in `caption`.
            spent: One a clip; is charged the floating-point operations, without the padding to captions of other
                clips. Its tokens, a vision-language model's, stay.
        """
        written = iter(
            self._written([frame for clip in clips for frame in clip.frames], batch_size)
        )
        found: list[tuple[Caption, ...]] = []
        for number, clip in enumerate(clips):
            own = [next(written) for _ in clip.frames]
            times = clip.timestamps.tolist()
            found.append(
                tuple(Caption(time_s=t, text=one.text) for t, one in zip(times, own, strict=True))
            )
            if spent is not None:
                spent[number].flops += self._flops(own)
        return found

    def _flops(self, written: Sequence[_Written]) -> float:
        """What the frames of one clip cost: in each pass all of them run as long as the longest."""
        total = 0.0
        for _, some in itertools.groupby(written, lambda one: one.batch):
            passed = list(some)
            longest = max(passed, key=lambda one: one.tokens)
            size, read = longest.size, longest.read
            total += len(passed) * caption_flops(self.model.config, size, read, longest.tokens)
        return total

    def _written(
        self, frames: Sequence[np.ndarray] | np.ndarray, batch_size: int | None
    ) -> list[_Written]:
        for frame in frames:
            if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype.name != "uint8":
                raise ValueError(
                    f"a frame must be uint8 of shape (H, W, 3), got {frame.dtype} {frame.shape}"
                )
        if batch_size is None:
            batch_size = 8 if self.device.type == "cpu" else 32
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: {batch_size}")
        found: list[_Written] = []
        with self._lock:
            for start in range(0, len(frames), batch_size):
                found += self._caption_batch(frames[start : start + batch_size], start)
        return found

    def _caption_batch(
        self, frames: Sequence[np.ndarray] | np.ndarray, number: int
    ) -> list[_Written]:
        import torch

        inputs = self.processor(
            images=list(frames), text=[self.task] * len(frames), return_tensors="pt"
        ).to(self.device, self.model.dtype)
        with torch.inference_mode():
            generated = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, num_beams=1, do_sample=False
            )
        tokenizer = self.processor.tokenizer
        texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
        # The first token is the decoder's start token, which may itself be the end token.
        ends = generated[:, 1:] == tokenizer.eos_token_id
        ended = ends.any(dim=1).tolist()
        lengths = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, ends.shape[1]).tolist()
        height, width = inputs["pixel_values"].shape[-2:]
        read = inputs["input_ids"].shape[1]
        return [
            _Written(clean_caption(text, complete), length, number, (height, width), read)
            for text, complete, length in zip(texts, ended, lengths, strict=True)
        ]


@dataclass(frozen=True)
class _Written:
    """A caption, and what tells its cost.

    Attributes:
        text: clean.
        tokens: written, with that which ends it.
        batch: the pass that it came from.
        size: height and width of the frame as the model read it.
        read: tokens of the prompt.
    """

    text: str
    tokens: int
    batch: int
    size: tuple[int, int]
    read: int


def clean_caption(text: str, complete: bool = True) -> str:
    """One tidy line out of what the model wrote.

    Removes leftover tags (`<loc_12>`, `</s>`) and runs of white space; when the model was cut off
    (`complete` is False) drops the unfinished sentence, if a finished one precedes it.
    """
    text = re.sub(r"</?[A-Za-z_]+\d*>", " ", text)
    text = " ".join(text.split())
    if not complete:
        ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
        if ends:
            text = text[: ends[-1]]
    return text


def _read(source: str, dtype: torch.dtype, *, local_only: bool) -> tuple[Any, Any]:
    """Processor and model from a directory or the hub's cache, or from the hub itself."""
    from transformers import AutoConfig, AutoProcessor, Florence2ForConditionalGeneration

    config = AutoConfig.from_pretrained(source, local_files_only=local_only)
    if config.model_type != "florence2":
        raise CaptionerError(
            f"captioner {source}: expected a model of type florence2, found {config.model_type}; "
            f"name a Florence-2 model such as {DEFAULT_CAPTIONER}"
        )
    processor = AutoProcessor.from_pretrained(source, local_files_only=local_only)
    model = Florence2ForConditionalGeneration.from_pretrained(
        source, dtype=dtype, local_files_only=local_only
    )
    return processor, model


def _load_advice(name: str, local: bool, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if local:
        return (
            f"captioner {name}: this directory does not hold a readable Florence-2 model with its "
            f"processor ({reason}); download it again, or point to another directory"
        )
    return (
        f"captioner {name}: neither a directory here nor to be had from the model hub ({reason}); "
        f"connect to the hub once so that it is cached, or pass a directory that holds "
        f"{DEFAULT_CAPTIONER}, or use the embedded bundle, which carries its own captioner"
    )
