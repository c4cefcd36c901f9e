"""What the domain guard looks at: how a clip looks to the vision tower, and how its pixels are made up.

Knows the tower's output and input. Does not know which clips are familiar.
"""

from __future__ import annotations

import numpy as np
import torch

from safelens.vlm_cache import Prefilled

PatchShape = tuple[int, int, int, int]

_CONTRAST = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_BRIGHTNESS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
_SATURATION = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_MOST_COMMON = (1, 2, 4, 8)
_LEVELS = 6
"""Steps of each primary colour that a palette tells apart."""
_STRIDE = 4
"""Of each patch every so many-th row and column serves for colours, which is a sixteenth of its pixels."""


def domain_width(hidden_size: int) -> int:
    """How many features the domain guard looks at, for hidden states of width D."""
    quantiles = 2 * len(_CONTRAST) + len(_BRIGHTNESS) + len(_SATURATION)
    return 2 * hidden_size + quantiles + 6 + 1 + len(_MOST_COMMON)


def domain_views(hidden_size: int) -> list[tuple[int, int]]:
    """What the domain guard reads: all features, and those of the pixels alone, which are the fewer."""
    width = domain_width(hidden_size)
    return [(0, width), (2 * hidden_size, width)]


def domain_features(prefilled: Prefilled, row: int, patch: PatchShape) -> np.ndarray:
    """What the domain guard looks at.

    Of the tower's output, mean and standard deviation over the video's tokens. Of the patches that it
    was given, quantiles of contrast within a patch and of change between the frames of a patch (where patches
    have one frame: between neighbouring frames), mean and standard deviation of each colour, quantiles of
    brightness and saturation, and how few colours fill a picture. A tower that has only ever seen one kind of picture maps others into the same space, and
    may lose just what sets them apart.

    Args:
        prefilled: the batch.
        row: the clip's place in it.
        patch: (channels, frames, height, width) of a patch.

    Returns:
        Shape (`domain_width(D)`,), float64.
    """
    vision = prefilled.vision[row].cpu().double()
    pixels = prefilled.pixels(row).cpu().double().view(-1, *patch)
    steps = len(prefilled.blocks(row))
    contrast = pixels.std((3, 4)).mean((1, 2))
    change = _changes(pixels, steps).abs().mean((1, 2, 3))
    pooled = (
        vision.mean(0),
        vision.std(0, correction=0),
        _quantiles(contrast, _CONTRAST),
        _quantiles(change, _CONTRAST),
        pixels.mean((0, 2, 3, 4)),
        pixels.std((0, 2, 3, 4)),
        _colours(pixels[..., ::_STRIDE, ::_STRIDE], steps),
    )
    return torch.cat(pooled).numpy()


def _changes(pixels: torch.Tensor, steps: int) -> torch.Tensor:
    """What moves in patches (N, C, T, h, w) of as many steps in time, shape (M, C, h, w)."""
    if pixels.shape[2] > 1 or steps == 1:
        return pixels[:, :, -1] - pixels[:, :, 0]
    return pixels[:, :, 0].unflatten(0, (steps, -1)).diff(dim=0).flatten(0, 1)


def _colours(pixels: torch.Tensor, steps: int) -> torch.Tensor:
    """Quantiles of brightness and saturation; entropy and the most common colours of a step's palette.

    Args:
        pixels: (patches, 3, frames, height, width); -1 to 1 as Qwen3-VL's processor makes them, cut beyond.
        steps: temporal steps that the patches belong to, one after the other.
    """
    rgb = (pixels.clamp(-1, 1) + 1) / 2
    rgb = rgb.movedim(1, -1).reshape(steps, -1, 3)
    digits = (rgb * _LEVELS).long().clamp(0, _LEVELS - 1)
    colour = (digits * torch.tensor([_LEVELS**2, _LEVELS, 1])).sum(-1)
    shares = torch.stack([one.bincount(minlength=_LEVELS**3) for one in colour]).double()
    shares = (shares / colour.shape[1]).sort(1, descending=True).values
    common = shares.cumsum(1)[:, [n - 1 for n in _MOST_COMMON]]
    return torch.cat(
        [
            _quantiles(rgb.mean(-1).flatten(), _BRIGHTNESS),
            _quantiles((rgb.amax(-1) - rgb.amin(-1)).flatten(), _SATURATION),
            torch.special.entr(shares).sum(1).mean(0, keepdim=True),
            common.mean(0),
        ]
    )


def _quantiles(values: torch.Tensor, at: tuple[float, ...]) -> torch.Tensor:
    # torch.quantile refuses more than 2**24 values.
    return torch.from_numpy(np.quantile(values.numpy(), at))
