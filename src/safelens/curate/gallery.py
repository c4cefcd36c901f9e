"""A page of the most helpful and the most harmful samples of each class, to be looked at.

Knows scores, clips and pictures. Knows nothing of how the scores came about.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from safelens.contact import contact_sheet, data_url
from safelens.video import Clip, VideoError

Side = Literal["most harmful", "most helpful"]


@dataclass(frozen=True)
class Shown:
    """One sample of the page.

    Attributes:
        id: Of the sample.
        label: The class it is labelled as.
        own: Mean influence on its own class.
        all: Mean influence on the whole validation set.
        kept: Whether the filter keeps it.
        sheet: Its contact sheet as a `data:` address; None where it cannot be decoded.
    """

    id: str
    label: str
    own: float
    all: float
    kept: bool
    sheet: str | None


def extremes(own: Tensor, labels: Tensor, label: int, count: int) -> dict[Side, list[int]]:
    """Rows of a class with the lowest and the highest influence on it, `count` of each at most.

    Args:
        own: Mean influence on the own class, shape (N,); rows of NaN are left out.
        labels: Class indices, shape (N,).
        label: The class.
        count: On each side.
    """
    rows = torch.nonzero((labels == label) & own.isfinite()).flatten()
    order = rows[own[rows].argsort()].tolist()
    count = min(count, len(order) // 2)
    return {"most harmful": order[:count], "most helpful": order[len(order) - count :][::-1]}


def sheet_of(path: str, read: Callable[[str], Clip]) -> str | None:
    """A video's contact sheet as a `data:` address."""
    try:
        return data_url(contact_sheet(read(path), quality=70))
    except VideoError:
        return None


def write_gallery(
    path: Path, title: str, classes: Sequence[tuple[str, dict[Side, list[Shown]]]]
) -> None:
    """Write one self-contained page: a section a class, with both ends of its ranking.

    Args:
        path: The page.
        title: What it is about.
        classes: Name of each class and its samples.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("safelens"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("gallery.html.j2").render(title=title, classes=classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8", errors="backslashreplace")
    os.replace(part, path)
