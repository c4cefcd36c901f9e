"""Models that read images, not video: every frame is an image of its own, its time before it.

Knows timestamps, blocks and patches. Knows nothing of how a model wants its patches packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from safelens.families.base import Family, Ids
from safelens.vlm_inputs import EncodedVideo, encode_blocks


class ImageFamily(Family):
    """Frames as images, never cut into tiles: ``<1.5 seconds>``, then the image's tokens.

    Args:
        model: has a ``multi_modal_projector``, behind its vision tower.
        processor: gives the image token, and how pixels are normalized.
        side: of a patch, pixels.
        merge: patches along a side of what becomes one token.
        opening: token that comes before an image's own.
        closing: token that comes after them.
    """

    medium = "image"

    def __init__(
        self, model: Any, processor: Any, *, side: int, merge: int, opening: str, closing: str
    ) -> None:
        super().__init__(model, processor)
        self.placeholder = processor.image_token
        self.patch_shape = (int(model.config.vision_config.num_channels), 1, side, side)
        self.merge = merge
        self._ends = [processor.tokenizer.convert_tokens_to_ids(t) for t in (opening, closing)]
        pictures = processor.image_processor
        self._mean = torch.tensor(pictures.image_mean).view(-1, 1, 1)
        self._std = torch.tensor(pictures.image_std).view(-1, 1, 1)

    @property
    def visual_token(self) -> int:
        """See :class:`Family`."""
        return int(self.config.image_token_id)

    @property
    def projector(self) -> nn.Module:
        """See :class:`Family`."""
        found: nn.Module = self.model.model.multi_modal_projector
        return found

    def encode(
        self, videos: Sequence[torch.Tensor], timestamps: Sequence[np.ndarray], ids: Ids
    ) -> list[EncodedVideo]:
        """See :class:`Family`; a temporal step is one frame."""
        return [
            self._encoded(video, times, ids)
            for video, times in zip(videos, timestamps, strict=True)
        ]

    def _encoded(self, video: torch.Tensor, timestamps: np.ndarray, ids: Ids) -> EncodedVideo:
        channels, _, side, _ = self.patch_shape
        steps, height, width = len(video), video.shape[2] // side, video.shape[3] // side
        pixels = (video.float() / 255 - self._mean) / self._std
        patches = pixels.view(steps, channels, height, side, width, side)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(steps * height * width, -1)
        tokens = height * width // self.merge**2
        block = torch.tensor(
            [self._ends[0]] + [self.config.image_token_id] * tokens + [self._ends[1]]
        )
        return encode_blocks(
            ids, timestamps, 1, block, torch.tensor([steps, height, width]), patches
        )
