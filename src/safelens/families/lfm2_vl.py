"""LFM2-VL: images of any shape for SigLIP2, short convolutions beside attention in the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from safelens.families.images import ImageFamily
from safelens.vlm_cost import convolving_flops, projector_flops, vision_transformer_flops
from safelens.vlm_inputs import EncodedVideo


class Lfm2Vl(ImageFamily):
    """LFM2-VL and LFM2.5-VL, without their tiles and thumbnails."""

    linear = "q_proj|k_proj|v_proj|in_proj|out_proj|w1|w2|w3"
    query_norm = "q_layernorm"

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(
            model,
            processor,
            side=int(model.config.vision_config.patch_size),
            merge=int(model.config.downsample_factor),
            opening=processor.image_start_token,
            closing=processor.image_end_token,
        )
        self.reach = int(self.text_config.conv_L_cache) - 1

    def visual(self, videos: Sequence[EncodedVideo]) -> dict[str, torch.Tensor]:
        """See :class:`Family`; patches of an image as (patches, h * w * 3), images padded to the longest."""
        images: list[torch.Tensor] = []
        shapes: list[list[int]] = []
        for video in videos:
            steps, height, width = video.grid[0].tolist()
            patches = video.pixels.view(-1, self.patch_shape[0], *self.patch_shape[2:])
            images += patches.permute(0, 2, 3, 1).flatten(1).chunk(steps)
            shapes += [[height, width]] * steps
        real = [torch.ones(len(image), dtype=torch.int32) for image in images]
        return {
            "pixel_values": pad_sequence(images, batch_first=True),
            "pixel_attention_mask": pad_sequence(real, batch_first=True),
            "spatial_shapes": torch.tensor(shapes),
        }

    def vision_flops(self, steps: int, height: int, width: int) -> float:
        """See :class:`Family`."""
        vision, config = self.config.vision_config, self.config
        tower = vision_transformer_flops(vision, steps, height * width, tokens=height * width)
        merged = vision.hidden_size * self.merge**2
        widths = (merged, config.projector_hidden_size, self.text_config.hidden_size)
        return tower + projector_flops(widths, steps * height * width // self.merge**2)

    def language_flops(self, new: int, past: int) -> float:
        """See :class:`Family`."""
        return convolving_flops(self.text_config, new, past)
