"""Label noise on request: which clip gets which wrong label.

Knows category ids and how annotators mistake one for another. Knows nothing of scenes or files.
Whether a clip is altered depends on (seed, clip id) alone, so a data set that grows keeps its noise.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

NoiseKind = Literal["symmetric", "confusion"]
"""`symmetric`: any other class, uniformly. `confusion`: a class that annotators mix it up with."""

NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)

CLASSES = ("sexual", "abuse", "violence", "misinformation", "illegal", "extreme", "safe")
"""SafeWorld's classes: the default policy's category ids, and `safe`."""

CONFUSIONS: Mapping[str, tuple[str, ...]] = {
    "sexual": ("safe",),
    "abuse": ("violence",),
    "violence": ("abuse",),
    "misinformation": ("safe",),
    "illegal": ("extreme",),
    "extreme": ("illegal",),
    "safe": ("misinformation", "sexual"),
}
"""For each true class what it is mistaken for under `confusion`; one is drawn uniformly."""


def noisy_labels(
    labels: Sequence[str],
    *,
    seed: int,
    key: str,
    rate: float,
    kind: NoiseKind = "confusion",
    confusions: Mapping[str, Sequence[str]] = CONFUSIONS,
) -> tuple[str, ...]:
    """The labels that an unreliable annotator gives.

    With probability `rate` one label, drawn uniformly, is replaced by a class drawn as `kind`
    says. Replacement by `safe` removes the label; replacement by a category that is already there
    leaves one fewer. An altered clip never keeps its true set of labels.

    Args:
        labels: true category ids; empty for safe.
        seed: the data set's seed.
        key: the clip's id.
        rate: probability of a wrong set of labels, 0 to 1.
        kind: `symmetric` or `confusion`.
        confusions: per class the classes it is mistaken for; used by `confusion`.

    Returns:
        Category ids in the order of CLASSES, empty for safe; `labels` as given if not altered.

    Raises:
        ValueError: `rate` or `kind` is not one of the above, or a label is not in CLASSES.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"noise is {rate}: expected a share of clips from 0 to 1")
    if kind not in NOISE_KINDS:
        raise ValueError(f"noise kind is {kind!r}: expected one of {', '.join(NOISE_KINDS)}")
    unknown = sorted(set(labels) - set(CLASSES[:-1]))
    if unknown:
        raise ValueError(f"labels {unknown} are unknown: expected ids from {CLASSES[:-1]}")
    draw = random.Random(f"noise/{seed}/{key}")
    if draw.random() >= rate:
        return tuple(labels)
    victim = draw.choice(list(labels) or ["safe"])
    if kind == "symmetric":
        substitute = draw.choice([name for name in CLASSES if name != victim])
    else:
        substitute = draw.choice(list(confusions[victim]))
    altered = (set(labels) - {victim}) | {substitute}
    return tuple(name for name in CLASSES[:-1] if name in altered)
