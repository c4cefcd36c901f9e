"""Qwen3-VL: native video, pairs of frames, rotary positions of time, height and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from safelens.families.base import Family, Ids
from safelens.vlm_cost import vision_flops
from safelens.vlm_inputs import EncodedVideo, encode_blocks


class Qwen3Vl(Family):
    """Qwen3-VL and models fine-tuned from it.

    Each temporal step, two frames, is ``<1.5 seconds>`` and a vision block, in place of the template's
    whole placeholder, as in Qwen's own processor; some releases of transformers (5.12 to 5.23) leave
    the placeholder's outer vision_start and vision_end around them.
    """

    medium = "video"
    axes = (3,)
    placeholder = "<|vision_start|><|video_pad|><|vision_end|>"

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        vision = model.config.vision_config
        side = int(vision.patch_size)
        self.patch_shape = (int(vision.in_channels), int(vision.temporal_patch_size), side, side)
        self.merge = int(vision.spatial_merge_size)
        # transformers 5.20 and later warn when this is unset; frames arrive resized
        processor.video_processor.cap_pixels_per_frame = False

    @property
    def visual_token(self) -> int:
        """See :class:`Family`."""
        return int(self.config.video_token_id)

    @property
    def projector(self) -> nn.Module:
        """See :class:`Family`; tower and projector are one module here."""
        visual: nn.Module = self.model.model.visual
        return visual

    def encode(
        self, videos: Sequence[torch.Tensor], timestamps: Sequence[np.ndarray], ids: Ids
    ) -> list[EncodedVideo]:
        """See :class:`Family`; the library's video processor makes the patches."""
        out = self.processor.video_processor(
            videos=list(videos), do_resize=False, do_sample_frames=False, return_tensors="pt"
        )
        grids: torch.Tensor = out["video_grid_thw"]
        pixels = out["pixel_values_videos"].split(grids.prod(-1).tolist())
        return [
            encode_blocks(ids, times, self.patch_shape[1], self._block(grid), grid, patches)
            for times, grid, patches in zip(timestamps, grids, pixels, strict=True)
        ]

    def _block(self, grid: torch.Tensor) -> torch.Tensor:
        """The tokens of one temporal step, without its timestamp."""
        config = self.config
        tokens = int(grid[1] * grid[2]) // self.merge**2
        start, end = config.vision_start_token_id, config.vision_end_token_id
        return torch.tensor([start] + [config.video_token_id] * tokens + [end])

    def positions(self, row: torch.Tensor, video: EncodedVideo) -> torch.Tensor:
        """See :class:`Family`; by the library's own rule."""
        spans, _ = self.model.model.get_rope_index(
            row[None],
            mm_token_type_ids=(row == self.config.video_token_id).int()[None] * 2,
            video_grid_thw=video.grid,
        )
        found: torch.Tensor = spans[:, 0]
        return found

    def visual(self, videos: Sequence[EncodedVideo]) -> dict[str, torch.Tensor]:
        """See :class:`Family`."""
        return {
            "pixel_values_videos": torch.cat([v.pixels for v in videos]),
            "video_grid_thw": torch.cat([v.grid for v in videos]),
        }

    def vision_flops(self, steps: int, height: int, width: int) -> float:
        """See :class:`Family`."""
        return vision_flops(self.config.vision_config, steps, height, width)
