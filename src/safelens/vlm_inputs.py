"""Inputs of the vision-language model: chats cut where the cache is cut, frames, padded rows.

Knows shapes and texts. Runs no model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


class ModelLoadError(Exception):
    """A model could not be loaded; the message names it, the cause and what to do."""


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
    """A right-padded batch of [video | tail] rows (see :meth:`VisionLanguageModel.video_rows`)."""

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
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    if (h, w) == (height, width):
        return video
    resized = torch.nn.functional.interpolate(
        video.float(), size=(h, w), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


@contextlib.contextmanager
def loading(source: str | Path) -> Iterator[None]:
    """Turn the many ways in which loading fails into one error that says what to do.

    Raises:
        ModelLoadError: always, in place of the library's own error.
    """
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        where = Path(source)
        if where.is_dir():
            advice = "the directory is incomplete, damaged or holds a model of another kind"
        else:
            advice = (
                "it is no local directory and the model hub could not serve it; give the directory "
                "of a downloaded model, check the name and the network, or use the embedded bundle "
                "(--bundle tiny)"
            )
        first = next(iter(str(error).splitlines()), "")
        raise ModelLoadError(f"cannot load {source}: {advice} [{type(error).__name__}: {first}]") from error
