"""InternVL: square images for a plain vision transformer, a plain language model of full attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from safelens.families.images import ImageFamily
from safelens.vlm_cost import projector_flops, vision_transformer_flops
from safelens.vlm_inputs import EncodedVideo, resize


class InternVl(ImageFamily):
    """InternVL 2.5 to 3.5 in the form that the library has itself (the hub's names end in ``-hf``).

    The tower takes squares, so a frame's aspect is not kept, as in InternVL's own processor where it
    cuts no tiles.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(
            model,
            processor,
            side=int(model.config.vision_config.patch_size[0]),
            merge=round(1 / model.config.downsample_ratio),
            opening=processor.start_image_token,
            closing=processor.end_image_token,
        )

    def fit(self, frames: np.ndarray, pixels: int) -> torch.Tensor:
        """See :class:`Family`; all frames become squares of one size, whatever theirs is."""
        side = max(1, round(pixels**0.5 / self.factor)) * self.factor
        return resize(frames, side, side)

    def visual(self, videos: Sequence[EncodedVideo]) -> dict[str, torch.Tensor]:
        """See :class:`Family`; patches are put together again as images (N, 3, h, w)."""
        channels, _, side, _ = self.patch_shape
        images = []
        for video in videos:
            steps, height, width = video.grid[0].tolist()
            patches = video.pixels.view(steps, height, width, channels, side, side)
            shape = (steps, channels, height * side, width * side)
            images.append(patches.permute(0, 3, 1, 4, 2, 5).reshape(shape))
        return {"pixel_values": torch.cat(images)}

    def vision_flops(self, steps: int, height: int, width: int) -> float:
        """See :class:`Family`; the tower has one more token an image, of its class."""
        vision, hidden = self.config.vision_config, self.text_config.hidden_size
        patches = height * width
        tower = vision_transformer_flops(vision, steps, patches, tokens=patches + 1)
        widths = (vision.hidden_size * self.merge**2, hidden, hidden)
        return tower + projector_flops(widths, steps * patches // self.merge**2)
