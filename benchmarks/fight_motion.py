"""What a fixed front end sees of a clip: its file, its frame differences, and how its blocks move.

Knows files, pictures and arithmetic; nothing here is learned. Knows nothing of labels, folds or learners.

Content is seen at one frame rate, one size and one length for all, so that a feature cannot tell a clip by
how its file was made; what a codec leaves in the pixels stays.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from safelens.video import Clip, ClipOptions

RATE = 10.0
"""Frames a second; no clip of the set has fewer than 12."""
STEPS = 20
"""Frames that are looked at, from the middle of a clip; the few shorter clips have fewer."""
SIZE = (64, 96)
"""Height and width to which every picture is brought, whatever its shape."""
BLOCK = 8
REACH = 5
"""Pixels that a block may move between two frames, each way."""
PENALTY = 0.2
"""Grey levels of mean difference that a match must gain for each pixel of movement."""
OPTIONS = ClipOptions(max_frames=64, max_fps=RATE, max_side=192)
PROPERTIES = ("width", "height", "rate", "seconds", "frames", "bytes", "bits/s", "bits/pixel")
MOTION = 25
"""Features of a step (see `motion_steps`)."""


@dataclass(frozen=True, eq=False)
class Grey:
    """A clip in grey.

    Attributes:
        frames: uint8 (T, *SIZE), T up to STEPS.
        times: float64 (T,), seconds.
    """

    frames: np.ndarray
    times: np.ndarray


def file_properties(path: Path) -> np.ndarray:
    """What a file says of itself without a picture: float64 (len(PROPERTIES),).

    Raises:
        av.FFmpegError: It opens as no video.
    """
    size = os.path.getsize(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        width, height, frames = stream.width, stream.height, stream.frames
    pixels = max(1, width * height * frames)
    bits = 8 * size / max(seconds, 1e-3)
    return np.array([width, height, rate, seconds, frames, size, bits, 8 * size / pixels])


def grey(clip: Clip) -> Grey:
    """The middle of a clip that was read with OPTIONS."""
    start = max(0, len(clip.frames) - STEPS) // 2
    some = slice(start, start + STEPS)
    size = (SIZE[1], SIZE[0])
    frames = [
        np.asarray(Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX))
        for frame in clip.frames[some]
    ]
    return Grey(np.stack(frames), clip.timestamps[some])


def plain_differences(clip: Grey) -> np.ndarray:
    """Mean absolute difference of neighbouring frames, summed up over time.

    Returns:
        float64 (9,), grey levels: mean, deviation, least, largest and five quantiles.
    """
    frames = clip.frames.astype(np.float64)
    steps = np.abs(np.diff(frames, axis=0)).mean((1, 2))
    quantiles = np.quantile(steps, (0.1, 0.25, 0.5, 0.75, 0.9))
    return np.array([steps.mean(), steps.std(), steps.min(), steps.max(), *quantiles])


def block_flow(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How blocks of one frame are found in the next, by full search over mean absolute differences.

    Args:
        frames: float32 (T, H, W), H and W multiples of BLOCK.

    Returns:
        Displacement in pixels (T-1, H/BLOCK, W/BLOCK, 2), as (down, right); the mean difference of the match
        that was chosen, and of no movement, both (T-1, H/BLOCK, W/BLOCK).
    """
    first, then = frames[:-1, None], frames[1:, None]
    height, width = frames.shape[1:]
    wide = F.pad(then, (REACH,) * 4, mode="replicate")
    best = torch.full((len(first), height // BLOCK, width // BLOCK), torch.inf)
    cost, still = best.clone(), best
    moved = torch.zeros((*best.shape, 2))
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            top, left = REACH + down, REACH + right
            there = wide[:, :, top : top + height, left : left + width]
            found = F.avg_pool2d((there - first).abs(), BLOCK)[:, 0]
            asked = found + PENALTY * (down**2 + right**2) ** 0.5
            better = asked < best
            best = torch.where(better, asked, best)
            cost = torch.where(better, found, cost)
            moved[better] = torch.tensor([float(down), float(right)])
            if not down and not right:
                still = found
    return moved, cost, still


def motion_steps(clip: Grey) -> np.ndarray:
    """How a clip moves, step by step.

    Of every pair of neighbouring frames: difference of the pictures at three blurs (mean, 95 %), difference
    that no movement explains (mean, 95 %) and that movement does; the camera (the median of all blocks) and
    what blocks move against it: mean, four quantiles, shares above 1 and 2.5 pixels, evenness of directions,
    coherence, difference to the neighbours; change since the step before (mean, 90 %, and the share of blocks
    whose speed changes by more than the mean, the measure of "violent flows", Hassner et al. 2012); share of
    the difference that lies in a tenth of the blocks, and its spread over the picture in block widths.
    Differences are in units of the clip's contrast, movements in pixels per 1 / RATE seconds.

    Returns:
        float32 (T-1, MOTION), finite.
    """
    frames = torch.from_numpy(clip.frames.astype(np.float32))
    late = torch.from_numpy(np.diff(clip.times) * RATE).float().clamp(min=0.5)
    contrast = frames.std((1, 2)).mean().clamp(min=4.0)
    columns: list[Tensor] = []
    for blur in (1, 4, 8):
        small = F.avg_pool2d(frames[:, None], blur)[:, 0] if blur > 1 else frames
        change = (small[1:] - small[:-1]).abs().flatten(1) / contrast
        columns += [change.mean(1), change.quantile(0.95, 1)]
    flow, cost, still = block_flow(frames)
    rest = cost.flatten(1) / contrast
    columns += [rest.mean(1), rest.quantile(0.95, 1)]
    columns.append((still - cost).flatten(1).mean(1) / contrast)
    flow = flow / late[:, None, None, None]
    camera = flow.flatten(1, 2).median(1).values
    columns.append(camera.norm(dim=1))
    own = flow - camera[:, None, None]
    speed = own.norm(dim=-1)
    flat = speed.flatten(1)
    total = flat.sum(1)
    columns.append(flat.mean(1))
    columns += list(flat.quantile(torch.tensor([0.5, 0.75, 0.9, 1.0]), 1))
    columns += [(flat > bound).float().mean(1) for bound in (1.0, 2.5)]
    octant = (torch.atan2(own[..., 0], own[..., 1]) / (torch.pi / 4)).round().long() % 8
    weight = F.one_hot(octant, 8).float() * speed[..., None]
    share = weight.sum((1, 2)) / total.clamp(min=1e-6)[:, None]
    columns.append(-(share * share.clamp(min=1e-9).log()).sum(1))
    columns.append(own.sum((1, 2)).norm(dim=1) / total.clamp(min=1e-6))
    across = (own[:, :, 1:] - own[:, :, :-1]).norm(dim=-1).flatten(1).mean(1)
    along = (own[:, 1:] - own[:, :-1]).norm(dim=-1).flatten(1).mean(1)
    columns.append(across + along)
    turned = (own[1:] - own[:-1]).norm(dim=-1).flatten(1)
    faster = (speed[1:] - speed[:-1]).abs().flatten(1)
    sudden = (faster > faster.mean(1, keepdim=True)).float().mean(1)
    for later in (turned.mean(1), turned.quantile(0.9, 1), sudden):
        columns.append(torch.cat([later[:1], later]))
    energy = still.flatten(1).square() + 1e-6
    energy = energy / energy.sum(1, keepdim=True)
    columns.append(energy.topk(max(1, energy.shape[1] // 10), dim=1).values.sum(1))
    rows, cols = torch.meshgrid(*(torch.arange(n).float() for n in still.shape[1:]), indexing="ij")
    places = torch.stack([rows.flatten(), cols.flatten()])
    centre = energy @ places.T
    apart = (places[None] - centre[:, :, None]).square().sum(1)
    columns.append((energy * apart).sum(1).sqrt())
    return torch.stack(columns, 1).numpy()


def pooled(steps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Features of steps as features of clips: mean, deviation, 10 %, 90 % and mean change from step to step.

    Args:
        steps: (N, T, D).
        mask: True where a step counts, (N, T); at least two of each row, from the first on.

    Returns:
        float64 (N, 5 D).
    """
    found = []
    for row, counts in zip(steps, mask, strict=True):
        some = row[counts].astype(np.float64)
        change = np.abs(np.diff(some, axis=0)).mean(0)
        low, high = np.quantile(some, (0.1, 0.9), axis=0)
        found.append(np.concatenate([some.mean(0), some.std(0), low, high, change]))
    return np.stack(found)


def padded(rows: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of (T_i, ...) as one array (N, length, ...) and a mask (N, length) of what is real.

    Raises:
        ValueError: A sequence is longer than `length`.
    """
    out = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"sequence {i} has {len(row)} steps, expected at most {length}")
        out[i, : len(row)] = row
        mask[i, : len(row)] = True
    return out, mask
