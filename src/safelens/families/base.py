"""What one family of vision-language models has of its own: how a video becomes tokens.

Knows what every family must say. Runs no model, and knows no prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from safelens.vlm_cost import language_flops
from safelens.vlm_inputs import EncodedVideo, fit_frames

Ids = Callable[[str], torch.Tensor]
"""Tokenizes a text; shape (L,)."""


class Family(ABC):
    """A family of vision-language models.

    Args:
        model: a model of the family.
        processor: its processor.

    Attributes:
        placeholder: what the chat template writes where a video, or the one image of it, stands.
        patch_shape: (channels, frames, height, width) of the patches that the vision tower reads.
        merge: patches along a side of what becomes one token.
    """

    medium: ClassVar[Literal["video", "image"]]
    """What stands for the clip in a chat."""
    axes: ClassVar[tuple[int, ...]] = ()
    """Axes of rotary positions, before (B, L): none where a position is one number."""
    linear: ClassVar[str] = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    """Names of the language model's linear layers, which an adapter changes."""

    reach: int = 0
    """How many tokens back the next one sees other than by attention: what a short convolution still reaches."""
    query_norm: ClassVar[str] = "q_norm"
    """What an attention layer calls the norm of its queries, if it has one."""
    placeholder: str
    patch_shape: tuple[int, int, int, int]
    merge: int

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.config: Any = model.config
        self.text_config: Any = model.config.get_text_config()

    @property
    def factor(self) -> int:
        """What the sides of a frame are multiples of, pixels."""
        return self.patch_shape[-1] * self.merge

    @property
    @abstractmethod
    def visual_token(self) -> int:
        """Id of the token that stands for what the vision tower saw."""

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """The module whose output, or its ``pooler_output``, is what the language model sees."""

    @abstractmethod
    def encode(
        self, videos: Sequence[torch.Tensor], timestamps: Sequence[np.ndarray], ids: Ids
    ) -> list[EncodedVideo]:
        """Turn clips into tokens and patches.

        Args:
            videos: a clip each, (T, 3, h, w) uint8, as :meth:`fit` made them.
            timestamps: a clip each, (T,) seconds.
            ids: tokenizes a text.
        """

    @abstractmethod
    def visual(self, videos: Sequence[EncodedVideo]) -> dict[str, torch.Tensor]:
        """The model's keyword inputs for the patches of a batch."""

    @abstractmethod
    def vision_flops(self, steps: int, height: int, width: int) -> float:
        """What the vision tower and its projector cost, for a video's grid in patches."""

    def fit(self, frames: np.ndarray, pixels: int) -> torch.Tensor:
        """Resize frames (T, H, W, 3) uint8 to about ``pixels`` each; gives (T, 3, h, w) uint8."""
        return fit_frames(frames, pixels, self.factor)

    def positions(self, row: torch.Tensor, video: EncodedVideo) -> torch.Tensor:
        """Rotary positions (*axes, L) of a row of tokens that begins with a video, from 0 on."""
        return torch.arange(len(row)).expand(*self.axes, -1)

    @property
    def attention_layers(self) -> list[int]:
        """Numbers of the language model's layers that attend."""
        layers = self.model.model.language_model.layers
        return [i for i, layer in enumerate(layers) if hasattr(layer, "self_attn")]

    def attention(self, layer: int) -> Any:
        """A layer's attention.

        Raises:
            ValueError: there is none.
        """
        if layer not in self.attention_layers:
            raise ValueError(
                f"layer {layer} does not attend; expected one of {self.attention_layers}"
            )
        return self.model.model.language_model.layers[layer].self_attn

    def queries(self, layer: int, given: torch.Tensor) -> torch.Tensor:
        """A layer's queries before they are rotated, shape (B, heads, L, head size).

        Args:
            layer: one that attends.
            given: what its attention was given, shape (B, L, D).
        """
        attention = self.attention(layer)
        found = attention.q_proj(given).unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, self.query_norm, None)
        return (found if norm is None else norm(found)).transpose(1, 2)

    def rotated(self, queries: torch.Tensor, start: int) -> torch.Tensor:
        """Queries (B, heads, L, head size) of text, as they are from rotary position ``start`` on."""
        places = torch.arange(start, start + queries.shape[2], device=queries.device)
        rotary = self.model.model.language_model.rotary_emb
        cos, sin = rotary(queries, places.expand(*self.axes, 1, -1))
        one, other = queries.chunk(2, dim=-1)
        return queries * cos[:, None] + torch.cat([-other, one], dim=-1) * sin[:, None]

    def language_flops(self, new: int, past: int) -> float:
        """What ``new`` tokens cost the language model behind ``past`` cached ones."""
        return language_flops(self.text_config, new, past)
