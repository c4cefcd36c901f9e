"""Trains a Florence-2 to caption frames: cross-entropy on the caption, given frame and task prompt.

Knows how a (frame, caption) pair becomes a loss. Does not know where pairs come from, nor how steps
are scheduled, checkpointed and resumed (that is `safelens.train.loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from safelens.train.loop import LoopConfig, fit

CaptionBatch = tuple[np.ndarray, Sequence[str]]
"""uint8 RGB frames of shape (B, H, W, 3) and their B captions."""

IGNORE = -100
"""Label of padding."""


class CaptionLoss:
    """Cross-entropy of captions under a Florence-2.

    The decoder reads `<s> caption` and is asked for `caption </s>`; the encoder reads the frame and
    the task's prompt, as `Captioner` will present them.

    Args:
        model: A `Florence2ForConditionalGeneration` whose decoder starts with `<s>`.
        processor: Its processor.
        task: Florence-2's prompt for the captions.
        max_tokens: Longest caption in tokens, `</s>` included; longer ones are cut.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        task: str = "<DETAILED_CAPTION>",
        max_tokens: int = 96,
    ) -> None:
        self.model = model
        self.processor = processor
        self.max_tokens = max_tokens
        size = processor.image_processor.size
        blank = np.zeros((size["height"], size["width"], 3), dtype=np.uint8)
        prompt = processor(images=[blank], text=[task], return_tensors="pt")["input_ids"]
        self._prompt = prompt.to(model.device)

    def labels(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids with `</s>`, padded with `IGNORE`, shape (B, longest)."""
        tokenizer = self.processor.tokenizer
        rows = tokenizer(list(captions), add_special_tokens=False)["input_ids"]
        rows = [[*row[: self.max_tokens - 1], tokenizer.eos_token_id] for row in rows]
        labels = torch.full((len(rows), max(map(len, rows))), IGNORE)
        for i, row in enumerate(rows):
            labels[i, : len(row)] = torch.tensor(row)
        return labels.to(self.model.device)

    def __call__(self, frames: np.ndarray, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Mean loss per token ("loss") and share of tokens guessed right ("accuracy").

        Raises:
            ValueError: Another number of captions than frames.
        """
        if len(frames) != len(captions):
            raise ValueError(f"{len(frames)} frames but {len(captions)} captions")
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        images = self.processor.image_processor(list(pixels), return_tensors="pt")["pixel_values"]
        labels = self.labels(captions)
        device = self.model.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16_is_fast(device)):
            logits = self.model(
                input_ids=self._prompt.expand(len(frames), -1),
                pixel_values=images.to(device),
                decoder_input_ids=self._shifted(labels),
                use_cache=False,
            ).logits
        real = labels != IGNORE
        loss = F.cross_entropy(logits[real].float(), labels[real])
        accuracy = (logits.argmax(-1) == labels)[real].float().mean()
        return {"loss": loss, "accuracy": accuracy.detach()}

    def _shifted(self, labels: torch.Tensor) -> torch.Tensor:
        text = self.model.config.text_config
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = text.decoder_start_token_id
        return shifted.masked_fill(shifted == IGNORE, text.pad_token_id)


def train_captioner(
    model: Any,
    processor: Any,
    batch_at: Callable[[int], CaptionBatch],
    out_dir: str | Path,
    config: LoopConfig,
    *,
    task: str = "<DETAILED_CAPTION>",
    max_tokens: int = 96,
) -> Path:
    """Train `model` on image-caption pairs, with Muon on its matrices and AdamW on the rest.

    Run again with the same arguments after an interruption, it continues from the last checkpoint
    with the same batches and ends with the same weights as an uninterrupted run.

    Args:
        model: A `Florence2ForConditionalGeneration`; trained in place.
        processor: Its processor.
        batch_at: Step number to batch; must give the same batch for the same step.
        out_dir: Gets `checkpoint.pt`, `log.jsonl` (loss of each step) and, at the end, `model/`.
        config: Steps, learning rates, clipping, checkpoint interval.
        task: Florence-2's prompt under which the captions are learned.
        max_tokens: Longest caption in tokens; longer ones are cut.

    Returns:
        `out_dir/model`, which `Captioner.load` reads.
    """
    out = Path(out_dir)
    loss = CaptionLoss(model, processor, task=task, max_tokens=max_tokens)
    fit(model, lambda step: loss(*batch_at(step)), config, out, title="captioner")
    model.save_pretrained(str(out / "model"))
    processor.save_pretrained(str(out / "model"))
    return out / "model"


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 products are native here; on a CPU without them they are 3 times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
