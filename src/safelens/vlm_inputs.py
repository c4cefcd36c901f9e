"""Inputs of the vision-language model: chats cut where the cache is cut, frames, padded rows.

Knows shapes and texts. Runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from safelens.vlm_loading import ModelLoadError

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
        ids: token ids of timestamps and placeholders, shape (L,).
        pixels: flattened patches, shape (patches, channels * frames * height * width), a temporal step
            after the other.
        grid: (steps, height, width) in patches, shape (1, 3).
        blocks: [start, end) of each temporal step in ``ids``, what opens and closes it included and
            its timestamp left out; all of the same length.
        lead: how many of the first ids are text that leads to the video and no part of it.
    """

    ids: torch.Tensor
    pixels: torch.Tensor
    grid: torch.Tensor
    blocks: tuple[tuple[int, int], ...]
    lead: int = 0

    def behind(self, text: torch.Tensor) -> EncodedVideo:
        """The same video behind token ids (T,) that are read with it."""
        blocks = tuple((a + len(text), b + len(text)) for a, b in self.blocks)
        ids = torch.cat([text, self.ids])
        return replace(self, ids=ids, blocks=blocks, lead=len(text) + self.lead)


@dataclass(frozen=True)
class VideoRows:
    """A right-padded batch of [video | tail] rows (see :meth:`VisionLanguageModel.video_rows`).

    Attributes:
        ids: token ids, shape (B, L).
        inputs: the library model's keyword inputs: ids, rotary positions, patches.
        lengths: tokens of each row without padding.
        next_positions: rotary position of the token that follows each row.
    """

    ids: torch.Tensor
    inputs: dict[str, torch.Tensor]
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
    return resize(frames, h, w)


def resize(frames: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Resize frames (T, H, W, 3) uint8; gives (T, 3, height, width) uint8."""
    # Frames that came through a pipe are read-only, which torch does not like: those are copied.
    video = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)
    if frames.shape[1:3] == (height, width):
        return video
    resized = torch.nn.functional.interpolate(
        video.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


def render_chat(
    processor: Any, user: str, system: str | None, *, medium: str, placeholder: str
) -> ChatLayout:
    """Render a chat of one system message and one user turn (video, then text) by its template.

    Args:
        processor: has the template.
        user: the user's text.
        system: the system message, or None.
        medium: kind of content that stands for the clip, "video" or "image".
        placeholder: what the template writes for it.

    Raises:
        ModelLoadError: the template does not write the placeholder.
    """
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": system})
    content = [{"type": medium}, {"type": "text", "text": user + _END_OF_TEXT}]
    messages.append({"role": "user", "content": content})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, found, rest = text.partition(placeholder)
    if not found:
        raise ModelLoadError(
            f"the chat template does not write {placeholder!r} for a {medium}; "
            "the template of the model's own family was expected"
        )
    tail, _, closing = rest.partition(_END_OF_TEXT)
    return ChatLayout(head, tail, closing)


def encode_blocks(
    ids: Callable[[str], torch.Tensor],
    timestamps: np.ndarray,
    per_step: int,
    block: torch.Tensor,
    grid: torch.Tensor,
    pixels: torch.Tensor,
) -> EncodedVideo:
    """Write a timestamp before each temporal step's block of placeholders.

    Args:
        ids: tokenizes a text.
        timestamps: of the frames, (T,) seconds.
        per_step: frames that a temporal step holds.
        block: the token ids of one step.
        grid: (steps, height, width) in patches, shape (3,).
        pixels: the video's patches.

    Raises:
        ValueError: the timestamps are not those of the video's frames.
    """
    times = step_times(timestamps, per_step)
    if len(times) != int(grid[0]):
        raise ValueError(
            f"{len(timestamps)} timestamps for a video of {int(grid[0])} temporal steps"
        )
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
