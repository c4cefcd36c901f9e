"""What a data set is made of, in numbers.

Knows records. Opens no video.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safelens.data.records import SAFE, Record
from safelens.policy import Policy

UNSPLIT = "no split"
UNDECIDED = "undecided"
"""Column of records that flag nothing but did not ask for every category: not known to be safe."""


@dataclass(frozen=True)
class Stats:
    """Counts of a data set.

    Attributes:
        records: how many there are.
        videos: how many different paths they name.
        classes: split to class to how many records have it; a record with two labels counts in both.
        several: records with more than one label.
        partial: records that speak of some of the policy's categories only.
        sources: source to records.
        scenarios: scenario to records.
        groups: how many groups there are.
        with_field: field that a record may lack to how many have it.
    """

    records: int
    videos: int
    classes: dict[str, dict[str, int]]
    several: int
    partial: int
    sources: dict[str, int]
    scenarios: dict[str, int]
    groups: int
    with_field: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def count(records: Sequence[Record], policy: Policy) -> Stats:
    """Count a data set.

    Args:
        records: all of it.
        policy: gives the classes and their order.
    """
    classes = (*policy.labels, UNDECIDED)
    splits = sorted({r.split for r in records if r.split}, key=["train", "val", "test"].index)
    rows: dict[str, dict[str, int]] = {}
    for split in [*splits, None]:
        part = [r for r in records if r.split == split]
        if part:
            found = Counter(label for record in part for label in classes_of(record))
            rows[split or UNSPLIT] = {label: found[label] for label in classes}
    return Stats(
        records=len(records),
        videos=len({r.video for r in records}),
        classes=rows,
        several=sum(len(r.labels) > 1 for r in records),
        partial=sum(r.asked is not None for r in records),
        sources=_counted(r.source for r in records),
        scenarios=_counted(r.scenario for r in records if r.scenario),
        groups=len({r.group for r in records if r.group}),
        with_field={
            name: sum(bool(getattr(r, name)) for r in records)
            for name in ("response", "captions", "scores", "interval", "twin_of")
        },
    )


def classes_of(record: Record) -> tuple[str, ...]:
    """The classes that a record counts for: its labels, `safe`, or `undecided`."""
    return record.labels or ((UNDECIDED,) if record.undecided else (SAFE,))


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
