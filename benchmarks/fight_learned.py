"""Two embedders trained from nothing on the clips of training folds, without their labels.

Knows grey frames. Knows no labels and no folds: it is handed clips to learn from and clips to embed.

Both look at windows of WINDOW frames from which each pixel's mean over the window is taken, so that a place
that does not change leaves nothing; both give a vector for every window of a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fight_motion import STEPS, Grey, padded

WINDOW = 4
HOP = 2
"""Frames from one window to the next."""
WINDOWS = (STEPS - WINDOW) // HOP + 1
"""Of a clip of full length."""
PATCH, STRIDE = 8, 4
"""Pixels of the halved frames."""
SOFT = 10.0
"""Grey levels of variance (Coates et al. 2011) that keep noise from being blown up."""
STRIDES = (1, 2, 3, 4)
"""Speeds that `SpeedNet` tells apart, in frames between two of a window."""


def halved(clip: Grey) -> Tensor:
    """Frames at half their height and width, float32 (T, H, W), grey levels."""
    return F.avg_pool2d(torch.from_numpy(clip.frames.astype(np.float32))[:, None], 2)[:, 0]


def windows(frames: Tensor) -> Tensor:
    """Windows of neighbouring frames, without their mean over time: (windows, WINDOW, H, W)."""
    found = frames.unfold(0, WINDOW, HOP).permute(0, 3, 1, 2)
    return found - found.mean(1, keepdim=True)


def patches(clip: Grey) -> Tensor:
    """Space-time patches, float32 (windows, places, WINDOW * PATCH * PATCH).

    Each is divided by sqrt(variance + SOFT): strong and weak change are told apart only near the noise.
    """
    cut = windows(halved(clip)).unfold(2, PATCH, STRIDE).unfold(3, PATCH, STRIDE)
    flat = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return flat / (flat.var(-1, keepdim=True) + SOFT).sqrt()


class Dictionary:
    """Whitened k-means of space-time patches (Coates, Lee & Ng 2011, "An analysis of single-layer networks").

    A patch is described by max(0, mean distance - distance) to every centre, a window by each centre's mean
    and largest value over the picture.

    Args:
        clips: To learn from.
        seed: Of the patches that are drawn and of k-means.
        size: Centres K.
        drawn: Patches to learn from.
        keep: Principal directions that are whitened.
    """

    def __init__(
        self,
        clips: Sequence[Tensor],
        seed: int,
        *,
        size: int = 48,
        drawn: int = 6_000,
        keep: int = 48,
    ) -> None:
        from sklearn.cluster import MiniBatchKMeans

        every = torch.cat([clip.flatten(0, 1) for clip in clips])
        random = torch.Generator().manual_seed(seed)
        some = every[torch.randperm(len(every), generator=random)[:drawn]].double()
        mean = some.mean(0)
        values, axes = torch.linalg.eigh(torch.cov(some.T))
        values, axes = values[-keep:], axes[:, -keep:]
        whiten = axes / (values.clamp(min=0) + 0.1 * values.mean()).sqrt()
        centres = MiniBatchKMeans(size, n_init=1, batch_size=2048, max_iter=20, random_state=seed)
        centres.fit(((some - mean) @ whiten).numpy())
        self.mean, self.whiten = mean.float(), whiten.float()
        self.centres = torch.from_numpy(centres.cluster_centers_).float()

    def __call__(self, clip: Tensor) -> np.ndarray:
        """A clip's `patches` as float32 (windows, 2 K)."""
        z = (clip - self.mean) @ self.whiten
        away = torch.cdist(z, self.centres.expand(len(z), -1, -1))
        near = (away.mean(-1, keepdim=True) - away).clamp(min=0)
        return torch.cat([near.mean(1), near.amax(1)], 1).numpy()


class SpeedNet(nn.Module):
    """A small convolutional network that learned how fast a window is played.

    Its task is that of Benaim et al. 2020 ("SpeedNet"): to tell windows whose frames are 1, 2, 3 or 4 apart.
    What it saw before its last layer is the embedding: each channel's mean and largest value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(WINDOW, 12, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, 2, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, len(STRIDES))

    def forward(self, some: Tensor) -> Tensor:
        """Embeddings (B, 64) of windows (B, WINDOW, H, W) in grey levels without their mean over time."""
        found = self.body(some / 16).flatten(2)
        return torch.cat([found.mean(-1), found.amax(-1)], 1)

    @classmethod
    def trained(
        cls, clips: Sequence[Tensor], seed: int, *, steps: int = 100, batch: int = 48
    ) -> SpeedNet:
        """The network after its task.

        Args:
            clips: Halved frames (T, H, W); too short for the longest stride are left out.
            seed: Of weights and batches.
            steps: Of AdamW, at a learning rate of 3e-3 that falls to 0.
            batch: Windows in a step, each mirrored with an even chance.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = cls()
        longest = (WINDOW - 1) * STRIDES[-1] + 1
        long = [clip for clip in clips if len(clip) >= longest]
        random = np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            speeds = random.integers(len(STRIDES), size=batch)
            drawn = []
            for speed in speeds:
                clip = long[random.integers(len(long))]
                stride = STRIDES[speed]
                first = random.integers(len(clip) - (WINDOW - 1) * stride)
                some = clip[first : first + (WINDOW - 1) * stride + 1 : stride]
                drawn.append(some.flip(-1) if random.random() < 0.5 else some)
            frames = torch.stack(drawn)
            answer = net.head(net(frames - frames.mean(1, keepdim=True)))
            loss = F.cross_entropy(answer, torch.from_numpy(speeds))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return net.eval()

    @torch.no_grad()
    def embed(self, clip: Tensor) -> np.ndarray:
        """Halved frames as float32 (windows, 64)."""
        found: np.ndarray = self(windows(clip)).numpy()
        return found


def by_dictionary(
    clips: Sequence[Grey], folds: Iterable[np.ndarray], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For the training rows of each fold: all clips' steps (N, WINDOWS, 2 K), and their mask."""
    cut = [patches(clip) for clip in clips]
    for train in folds:
        learned = Dictionary([cut[i] for i in train], seed)
        yield padded([learned(clip) for clip in cut], WINDOWS)


def by_speed(
    clips: Sequence[Grey], folds: Iterable[np.ndarray], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For the training rows of each fold: all clips' steps (N, WINDOWS, 64), and their mask."""
    small = [halved(clip) for clip in clips]
    for train in folds:
        learned = SpeedNet.trained([small[i] for i in train], seed)
        yield padded([learned.embed(clip) for clip in small], WINDOWS)
