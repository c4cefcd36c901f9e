"""The domain guard: how much a clip looks like what a bundle was trained on.

Knows feature vectors of training clips and how far away clips lie that are of the same kind but were
not trained on. Does not know what the features mean, nor what happens to a clip outside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT = "safelens.domain/2"

Floats = NDArray[np.float64]

_TAIL = 0.1
_FIELDS = ("mean", "std", "axes", "gains", "outer_gain", "references")
_SHARED = ("medians", "spreads", "held_out")


@dataclass(frozen=True, eq=False)
class View:
    """Some of the features, V of them, and where training clips lie in them.

    Attributes:
        columns: First feature and the one after the last.
        mean: Mean of the training features, shape (V,).
        std: Their standard deviation, shape (V,).
        axes: Principal components as columns, shape (V, P), those of largest variance first.
        gains: Whitening factor of each component, shape (P,).
        outer_gain: Whitening factor of every direction outside `axes`, shape (1,).
        references: Training clips in the leading K components, shape (R, K).
    """

    columns: tuple[int, int]
    mean: Floats
    std: Floats
    axes: Floats
    gains: Floats
    outer_gain: Floats
    references: Floats

    @classmethod
    def fit(
        cls,
        features: Floats,
        columns: tuple[int, int],
        *,
        variance: float,
        shrinkage: float,
        rows: NDArray[np.int64],
    ) -> View:
        """Of all features (N, D) those in `columns`; `rows` are kept as references."""
        seen = features[:, slice(*columns)]
        mean, std = seen.mean(axis=0), seen.std(axis=0)
        widest = max(1e-12, float(std.max()))
        std = np.where(std > 1e-6 * widest, std, widest)
        standard = (seen - mean) / std
        _, singular, components = np.linalg.svd(standard, full_matrices=False)
        spectrum = singular**2 / len(seen)
        damping = shrinkage * float(spectrum.sum()) / seen.shape[1] + 1e-12
        share = np.cumsum(spectrum) / max(float(spectrum.sum()), 1e-12)
        leading = min(int(np.searchsorted(share, variance)) + 1, len(spectrum))
        axes = np.ascontiguousarray(components.T)
        return cls(
            columns=columns,
            mean=mean,
            std=std,
            axes=axes,
            gains=(spectrum + damping) ** -0.5,
            outer_gain=np.array([damping**-0.5]),
            references=(standard[rows] @ axes[:, :leading]).astype(np.float32).astype(np.float64),
        )

    def readings(self, x: Floats, neighbours: int) -> Floats:
        """Nearest-neighbour and Mahalanobis distance of each row of all features, shape (N, 2)."""
        standard = (x[:, slice(*self.columns)] - self.mean) / self.std
        inside = standard @ self.axes
        outside = np.linalg.norm(standard - inside @ self.axes.T, axis=1) * self.outer_gain[0]
        leading = inside[:, : self.references.shape[1]]
        near = _kth_distance(leading, self.references, neighbours)
        mahalanobis = np.hypot(np.linalg.norm(inside * self.gains, axis=1), outside)
        return np.stack([near, mahalanobis], axis=1)


@dataclass(frozen=True, eq=False)
class DomainGuard:
    """Distance from the training clips, by the most alarmed of all readings of standardized features.

    There are two readings of every view, which is a range of the features:
    *Nearest neighbour*: distance to the k-th nearest training clip, in the leading principal
    components. It sees the gaps between clusters, which one Gaussian would call home.
    *Mahalanobis*: distance from the mean under the shrunk covariance, in all directions. It sees
    steps in directions in which training clips hardly vary, which the first reading overlooks.
    A few telling features among many others are drowned; a view of their own makes them heard.

    With m and q the median and 95 % quantile v takes over the held-out clips, for each reading v,

        distance(x) = max(0, 1 + max over all readings of (v(x) - m) / (q - m)),

    so 1 is usual, 2 is rare, and no reading drowns another.

    Attributes:
        width: Features of a clip, D.
        views: What is read.
        medians: m of both readings of each view, shape (views, 2).
        spreads: q - m of both readings of each view, shape (views, 2).
        neighbours: k of the nearest neighbours.
        held_out: Distances of the held-out clips in rising order, shape (M,).
        threshold: A clip is in domain if and only if its distance is at most this.
        false_refusal_rate: Share of clips of the training's kind that the threshold refuses.
    """

    width: int
    views: tuple[View, ...]
    medians: Floats
    spreads: Floats
    neighbours: int
    held_out: Floats
    threshold: float
    false_refusal_rate: float

    @classmethod
    def fit(
        cls,
        features: ArrayLike,
        held_out: ArrayLike,
        false_refusal_rate: float = 0.01,
        *,
        views: Sequence[tuple[int, int]] | None = None,
        variance: float = 0.99,
        shrinkage: float = 0.01,
        neighbours: int = 5,
        max_references: int = 4000,
        seed: int = 0,
    ) -> DomainGuard:
        """Learn the domain from training clips and set the threshold on held-out ones.

        The threshold is the ceil((M + 1)(1 - rate))-th of the M held-out distances: a fresh clip of the
        same kind is refused with a probability of at most `false_refusal_rate`.

        Args:
            features: Features of training clips, shape (N, D).
            held_out: Features of clips of the same kind that no model trained on, shape (M, D).
            false_refusal_rate: Wanted share of refused clips of this kind, in (0, 1).
            views: Ranges of features that are read, first and the one after the last; all as one if None.
            variance: Share of the variance that the components hold in which neighbours are sought.
            shrinkage: Added to each direction's variance before whitening, as a share of their mean.
            neighbours: k of the nearest neighbours.
            max_references: Most training clips to keep as references; more are drawn from.
            seed: Seeds that draw.

        Raises:
            ValueError: Shapes that do not match, values that are not finite, too few clips.
        """
        train = _matrix("features", features)
        fresh = _matrix("held_out", held_out)
        if train.shape[1] != fresh.shape[1]:
            raise ValueError(
                f"features have {train.shape[1]} columns and held_out {fresh.shape[1]}: expected the same"
            )
        if len(train) < max(2, neighbours):
            raise ValueError(
                f"features: {len(train)} clips; expected at least {max(2, neighbours)}"
            )
        if not 0 < false_refusal_rate < 1:
            raise ValueError(f"false_refusal_rate must lie between 0 and 1: {false_refusal_rate}")
        rank = int(np.ceil((len(fresh) + 1) * (1 - false_refusal_rate) - 1e-9))
        if rank > len(fresh):
            raise ValueError(
                f"held_out: {len(fresh)} clips cannot show a false refusal rate of "
                f"{false_refusal_rate:g}; expected at least {int(np.ceil(1 / false_refusal_rate - 1))}"
            )
        width = train.shape[1]
        for first, end in views or ():
            if not 0 <= first < end <= width:
                raise ValueError(f"view ({first}, {end}) is no range of {width} features")
        rows = np.arange(len(train))
        if len(rows) > max_references:
            drawn = np.random.default_rng(seed).choice(len(train), max_references, replace=False)
            rows = np.sort(drawn)
        seen = tuple(
            View.fit(train, columns, variance=variance, shrinkage=shrinkage, rows=rows)
            for columns in views or [(0, width)]
        )
        guard = cls(
            width=width,
            views=seen,
            medians=np.zeros((len(seen), 2)),
            spreads=np.ones((len(seen), 2)),
            neighbours=neighbours,
            held_out=np.zeros(0),
            threshold=float("nan"),
            false_refusal_rate=false_refusal_rate,
        )
        readings = guard._readings(fresh)
        medians = np.median(readings, axis=0)
        spreads = np.maximum(np.quantile(readings, 0.95, axis=0) - medians, 1e-9)
        guard = replace(guard, medians=medians, spreads=spreads)
        distances = np.sort(guard.distance(fresh))
        return replace(guard, held_out=distances, threshold=float(distances[rank - 1]))

    def distance(self, x: ArrayLike) -> Floats:
        """Distance of feature vectors, 1 being usual for a clip of the training's kind.

        Args:
            x: One vector (D,) or many (N, D). A vector with a value that is not finite is infinitely far.

        Returns:
            One number (for one vector) or shape (N,).

        Raises:
            ValueError: Vectors of another width.
        """
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.width:
            raise ValueError(f"x must be ({self.width},) or (N, {self.width}): {rows.shape}")
        many = np.atleast_2d(rows)
        fine: NDArray[np.bool_] = np.asarray(np.isfinite(many).all(axis=1))
        alarm = (self._readings(np.where(fine[:, None], many, 0.0)) - self.medians) / self.spreads
        found: Floats = np.full(len(many), np.inf)
        found[fine] = np.maximum(0.0, 1 + alarm[fine].max(axis=(1, 2)))
        return found if rows.ndim == 2 else found[0]

    def _readings(self, x: Floats) -> Floats:
        """Both readings of each view of each row, shape (N, views, 2)."""
        return np.stack([view.readings(x, self.neighbours) for view in self.views], axis=1)

    def in_domain(self, x: ArrayLike) -> Floats:
        """How usual a clip is: the share of held-out clips that lie at least as far away, 0..1.

        The share is interpolated between held-out clips; among the farthest tenth and beyond, it falls
        exponentially as the mean excess there, so that it never stops telling clips apart.

        Args:
            x: One vector (D,) or many (N, D).

        Returns:
            One number (for one vector) or shape (N,).
        """
        return self.share_beyond(self.distance(x))

    def share_beyond(self, distance: ArrayLike) -> Floats:
        """`in_domain` for known distances."""
        d = np.asarray(distance, dtype=np.float64)
        count = len(self.held_out)
        ranks = np.arange(count, 0, -1) / (count + 1)
        start = max(0, count - max(2, round(_TAIL * count)))
        bend = self.held_out[start]
        excess = max(float((self.held_out[start:] - bend).mean()), 1e-9 * max(1.0, float(bend)))
        body = np.interp(d, self.held_out, ranks, left=1.0)
        tail = ranks[start] * np.exp(-np.maximum(d - bend, 0.0) / excess)
        share: Floats = np.asarray(np.where(d > bend, tail, body))
        return share[()]

    def accepts(self, x: ArrayLike) -> NDArray[np.bool_]:
        """Whether clips are in domain: `distance(x) <= threshold`; same shapes as `distance`."""
        accepted: NDArray[np.bool_] = np.less_equal(self.distance(x), self.threshold)
        return accepted

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (float64, the references as float32)."""
        from safetensors.numpy import save_file

        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _SHARED}
        for number, view in enumerate(self.views):
            for name in _FIELDS:
                tensors[f"{number}.{name}"] = np.ascontiguousarray(getattr(view, name))
            tensors[f"{number}.references"] = view.references.astype(np.float32)
        numbers = {
            "width": self.width,
            "views": [view.columns for view in self.views],
            "neighbours": self.neighbours,
            "threshold": self.threshold,
            "false_refusal_rate": self.false_refusal_rate,
        }
        save_file(tensors, path, metadata={"format": FORMAT, "numbers": json.dumps(numbers)})

    @classmethod
    def load(cls, path: str | Path) -> DomainGuard:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a domain guard.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: missing; expected a saved domain guard here")
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"format {metadata.get('format')!r}; expected {FORMAT!r}")
                tensors = {n: file.get_tensor(n).astype(np.float64) for n in file.keys()}  # noqa: SIM118
                numbers = json.loads(metadata["numbers"])
            views = tuple(
                View((first, end), **{name: tensors[f"{number}.{name}"] for name in _FIELDS})
                for number, (first, end) in enumerate(numbers.pop("views"))
            )
            return cls(views=views, **{name: tensors[name] for name in _SHARED}, **numbers)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not a domain guard: {error}; fit and save it again"
            ) from error


def _matrix(name: str, values: ArrayLike) -> Floats:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{name} must be (clips, width) and not empty: {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(
            f"{name}: row {int(np.argmin(np.isfinite(matrix).all(axis=1)))} is not finite"
        )
    return matrix


def _kth_distance(x: Floats, references: Floats, k: int) -> Floats:
    """Euclidean distance of each row to its k-th nearest reference."""
    found = np.empty(len(x))
    squares = (references**2).sum(axis=1)
    for start in range(0, len(x), 512):
        part = x[start : start + 512]
        d2 = (part**2).sum(axis=1)[:, None] + squares - 2 * part @ references.T
        found[start : start + 512] = np.partition(d2, k - 1, axis=1)[:, k - 1]
    return np.sqrt(np.maximum(found, 0.0))
