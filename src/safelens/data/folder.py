"""A folder of videos with a table of labels, `labels.csv`: rows to records.

Knows the columns and how labels may be written. Knows nothing of what the labels mean: `names` does.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safelens.data.entries import Entry
from safelens.data.names import CategoryNames
from safelens.data.problems import DataError, LeftOut
from safelens.data.records import SAFE

COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("file", "video", "path", "filename", "video_path"),
    "label": ("label", "labels", "category", "class"),
    "split": ("split",),
    "group": ("source_group", "group"),
    "id": ("id",),
}
"""What a row says, and the names that its column may have; the first two must be there."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""How a split may be written."""


def iter_rows(path: Path) -> Iterator[Entry]:
    """The rows of a table, each with the columns of COLUMNS that the table has.

    Raises:
        DataError: the file cannot be read as a table with a column for videos and one for labels.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            columns = _columns(path, header)
            for position, row in enumerate(reader, start=1):
                where = f"{path}:{reader.line_num}"
                if any(row.get(name) is None for name in header):
                    error = f"fewer columns than the {len(header)} of the header"
                    yield Entry(position, where, None, error)
                else:
                    value = {key: row[name].strip() for key, name in columns.items()}
                    yield Entry(position, where, value)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text at byte {error.start}; expected a CSV file"
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def row_fields(row: dict[str, Any], names: CategoryNames) -> dict[str, Any]:
    """Video, labels, split and group of a row.

    Raises:
        LeftOut: the row names no video, or a label or split is unknown.
    """
    if not row["video"]:
        raise LeftOut("bad_entry", "the row names no video")
    split = row.get("split") or None
    if split is not None and split.lower() not in SPLITS:
        raise LeftOut("bad_entry", f"split {split!r}; expected one of {', '.join(SPLITS)}")
    return {
        "video": row["video"],
        "labels": _labels(row["label"], names),
        "split": None if split is None else SPLITS[split.lower()],
        "group": row.get("group") or None,
    }


def _labels(text: str, names: CategoryNames) -> tuple[str, ...]:
    if not text:
        raise LeftOut("unknown_label", f"the label is empty; write {SAFE!r} for a harmless video")
    # A name may hold what separates names, so the whole is looked up first.
    whole = names.find(text)
    pieces = [text] if whole else [piece.strip() for piece in re.split(r"[;|]", text)]
    found = []
    for piece in pieces:
        category = names.find(piece)
        if category is None:
            raise LeftOut(
                "unknown_label",
                f"label {piece!r} is no category of policy {names.policy.id!r}; say what it means"
                f" with --map '{piece}=ID', ID one of {', '.join(names.policy.labels)}",
            )
        found.append(category)
    if SAFE in found and len(set(found)) > 1:
        raise LeftOut("unknown_label", f"label {text!r}: {SAFE!r} excludes every other label")
    return tuple(dict.fromkeys(category for category in found if category != SAFE))


def _columns(path: Path, header: list[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for key, allowed in COLUMNS.items():
        present = [name for name in header if name.lower() in allowed]
        if len(present) > 1:
            raise DataError(f"{path}: columns {present} say the same; keep one of them")
        if present:
            columns[key] = present[0]
    for key in ("video", "label"):
        if key not in columns:
            raise DataError(
                f"{path}: no column for the {key}; expected one of {', '.join(COLUMNS[key])},"
                f" found {', '.join(header) or 'no header'}"
            )
    return columns
