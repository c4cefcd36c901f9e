"""One frame in, one sentence out: Florence-2 as S2's eyes.

Knows Florence-2's prompts and how to run it greedily over a batch of frames. Does not know where
frames come from, or what is made of the sentences.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
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
        self.model = model.eval()
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
        self, frames: np.ndarray, batch_size: int = 8, spent: Spent | None = None
    ) -> list[str]:
        """Describe each frame in words, greedily (the same frame always gives the same words).

        Args:
            frames: uint8 RGB, shape (T, H, W, 3); T may be 0.
            batch_size: Frames per forward pass, at least 1.
            spent: Is charged the floating-point operations; its tokens, a vision-language model's, stay.

        Returns:
            T captions of clean text: one line, no special tokens. A caption that hits
            `max_new_tokens` ends at its last full sentence when it has one.

        Raises:
            ValueError: Frames of another shape or type, or `batch_size` below 1.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype.name != "uint8":
            raise ValueError(
                f"frames must be uint8 of shape (T, H, W, 3), got {frames.dtype} {frames.shape}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: {batch_size}")
        captions: list[str] = []
        with self._lock:
            for start in range(0, len(frames), batch_size):
                texts, flops = self._caption_batch(frames[start : start + batch_size])
                captions.extend(texts)
                if spent is not None:
                    spent.flops += flops
        return captions

    def describe(
        self, clips: Sequence[Clip], batch_size: int = 8, spent: Spent | None = None
    ) -> list[tuple[Caption, ...]]:
        """Of each clip one caption per frame, with its time (Algorithm 1, line 14).

        Args:
            clips: One or more, with frames of one size; batches hold frames of several clips.
            batch_size: Frames per forward pass.
            spent: Is charged what all of them cost, as in `caption`.
        """
        import numpy as np

        frames = np.concatenate([clip.frames for clip in clips])
        texts = iter(self.caption(frames, batch_size, spent))
        return [
            tuple(Caption(time_s=float(time), text=next(texts)) for time in clip.timestamps)
            for clip in clips
        ]

    def _caption_batch(self, frames: np.ndarray) -> tuple[list[str], float]:
        """Captions, and the floating-point operations of all."""
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
        ended = (generated[:, 1:] == tokenizer.eos_token_id).any(dim=1).tolist()
        height, width = inputs["pixel_values"].shape[-2:]
        read, written = inputs["input_ids"].shape[1], generated.shape[1] - 1
        flops = len(frames) * caption_flops(self.model.config, (height, width), read, written)
        clean = [clean_caption(text, complete) for text, complete in zip(texts, ended, strict=True)]
        return clean, flops


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
