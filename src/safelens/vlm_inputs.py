"""Inputs of the vision-language model: chats cut where the cache is cut, frames, padded rows.

Knows shapes and texts. Runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from safelens.vlm_loading import ModelLoadError

VIDEO_PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"
_END_OF_TEXT = "\u241e"  # stands where the user's text ends while a chat template is rendered


@dataclass(frozen=True)
class ChatLayout:
    """One rendered chat, cut where the cache is cut.

    Attributes:
        head: everything before the video (policy first) or just the turn's opening (video first).
        tail: everything from the video to the end of the user's text.
        closing: what closes the user's turn and opens the assistant's.
    """

    head: str
    tail: str
    closing: str


@dataclass(frozen=True)
class EncodedVideo:
    """A clip as the model takes it.

    Attributes:
        ids: token ids of timestamps and video placeholders, shape (L,).
        pixels: flattened patches, shape (patches, channels * temporal * height * width).
        grid: (time, height, width) in patches, shape (1, 3).
        blocks: [start, end) of each temporal step in ``ids``, its vision_start and vision_end
            included and its timestamp left out; all of the same length.
    """

    ids: torch.Tensor
    pixels: torch.Tensor
    grid: torch.Tensor
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class VideoRows:
    """A right-padded batch of [video | tail] rows (see :meth:`VisionLanguageModel.video_rows`).

    Attributes:
        ids: token ids, shape (B, L).
        positions: rotary positions, shape (3, B, L).
        pixels: patches of all videos, one after the other.
        grids: a grid a video, shape (B, 3).
        lengths: tokens of each row without padding.
        next_positions: rotary position of the token that follows each row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    pixels: torch.Tensor
    grids: torch.Tensor
    lengths: list[int]
    next_positions: list[int]


def fit_frames(frames: np.ndarray, pixels: int, factor: int) -> torch.Tensor:
    """Resize frames to at most about ``pixels`` each, aspect kept, sides multiples of ``factor``.

    Args:
        frames: (T, H, W, 3) uint8.
        pixels: area aimed at; frames are enlarged only to round up to a factor.
        factor: patch size times merge size.

    Returns:
        (T, 3, h, w) uint8.
    """
    height, width = frames.shape[1:3]
    scale = min(1.0, math.sqrt(pixels / (height * width)))
    h = max(factor, round(height * scale / factor) * factor)
    w = max(factor, round(width * scale / factor) * factor)
    # Frames that came through a pipe are read-only, which torch does not like: those are copied.
    video = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)
    if (h, w) == (height, width):
        return video
    resized = torch.nn.functional.interpolate(
        video.float(), size=(h, w), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


def render_chat(processor: Any, user: str, system: str | None) -> ChatLayout:
    """Render a chat of one system message and one user turn (video, then text) by its template.

    Raises:
        ModelLoadError: the template does not write a video as Qwen3-VL's does.
    """
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    content = [{"type": "video"}, {"type": "text", "text": user + _END_OF_TEXT}]
    messages.append({"role": "user", "content": content})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, found, rest = text.partition(VIDEO_PLACEHOLDER)
    if not found:
        raise ModelLoadError(
            f"the chat template does not write {VIDEO_PLACEHOLDER!r} for a video; "
            "a Qwen3-VL chat template was expected"
        )
    tail, _, closing = rest.partition(_END_OF_TEXT)
    return ChatLayout(head, tail, closing)


def encode_blocks(
    config: Any,
    ids: Callable[[str], torch.Tensor],
    timestamps: np.ndarray,
    grid: torch.Tensor,
    pixels: torch.Tensor,
) -> EncodedVideo:
    """Write a timestamp before each temporal step's block of placeholders.

    The blocks stand in place of the template's whole placeholder, as in Qwen's own processor; some
    releases of transformers (5.12 to 5.23) leave the placeholder's outer vision_start and vision_end
    around them.

    Args:
        config: the model's configuration.
        ids: tokenizes a text.
        timestamps: of the frames, (T,) seconds.
        grid: (time, height, width) in patches.
        pixels: the video's patches.

    Raises:
        ValueError: the timestamps are not those of the video's frames.
    """
    steps, height, width = (int(n) for n in grid)
    merged = height * width // int(config.vision_config.spatial_merge_size) ** 2
    block = torch.tensor(
        [config.vision_start_token_id]
        + [config.video_token_id] * merged
        + [config.vision_end_token_id]
    )
    times = step_times(timestamps, int(config.vision_config.temporal_patch_size))
    if len(times) != steps:
        raise ValueError(f"{len(timestamps)} timestamps for a video of {steps} temporal steps")
    parts: list[torch.Tensor] = []
    blocks = []
    length = 0
    for time in times:
        stamp = ids(f"<{time:.1f} seconds>")
        parts += [stamp, block]
        blocks.append((length + len(stamp), length + len(stamp) + len(block)))
        length = blocks[-1][1]
    return EncodedVideo(torch.cat(parts), pixels, grid[None], tuple(blocks))


def step_times(timestamps: Sequence[float] | np.ndarray, per_step: int) -> list[float]:
    """The time of each temporal step: the middle of its first and last frame, as Qwen3-VL has it.

    Args:
        timestamps: of the frames, seconds; the last one is repeated to fill the last step.
        per_step: frames that a temporal step holds.
    """
    times = [float(t) for t in timestamps]
    times += [times[-1]] * (-len(times) % per_step)
    return [(times[i] + times[i + per_step - 1]) / 2 for i in range(0, len(times), per_step)]
