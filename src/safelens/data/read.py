"""Data sets in any known form, to records: which form a path has, and one way to read them all.

Knows how the forms are told apart, how records get their ids, and that a bad entry is left out with
its reason and never stops the rest. What an entry means is the matter of `safewatch` and `folder`.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safelens.data.entries import Entry, find_video, iter_entries
from safelens.data.folder import iter_rows, row_fields
from safelens.data.names import CategoryNames, bare_policy
from safelens.data.problems import DataError, LeftOut, Problem
from safelens.data.records import Record, RecordError, Split, validate_record
from safelens.data.safewatch import benchmark_fields, conversation_fields, swift_fields
from safelens.policy import Policy
from safelens.prompts import ParseError, parse_response

Form = Literal["records", "benchmark", "conversations", "swift", "folder"]

FORMS: dict[Form, str] = {
    "records": "records (JSON Lines of {id, video, labels, source, ...})",
    "benchmark": "a SafeWatch benchmark folder ({real,genai}/C1..C6/*_benchmark.json) or one such file",
    "conversations": "raw SFT data (JSON or JSON Lines of {id, video, conversations})",
    "swift": "swift data (JSON Lines of {query, response, history, videos})",
    "folder": "a folder with labels.csv",
}
"""Form to how a message describes it."""

_KEYS: dict[Form, frozenset[str]] = {
    "conversations": frozenset({"video", "conversations"}),
    "swift": frozenset({"query", "response"}),
    "benchmark": frozenset({"video_path", "labels"}),
    "records": frozenset({"id", "video", "labels"}),
}
_LOOKED_AT = 50
_FILED = re.compile(r"C(\d)")
_SUFFIX = "_benchmark.json"


@dataclass(frozen=True)
class Dataset:
    """What was read.

    Attributes:
        records: in the order of the files; their videos are absolute paths.
        problems: everything that was wrong, what was left out included.
        entries: how many entries the files hold.
    """

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    entries: int

    @property
    def left_out(self) -> int:
        """How many entries gave no record."""
        return self.entries - len(self.records)


@dataclass(frozen=True)
class _Source:
    """One file of entries and how to read them.

    `fields` gives a record's fields without id, and raises LeftOut; `folder` is what a relative
    video is relative to.
    """

    entries: Callable[[], Iterator[Entry]]
    fields: Callable[[dict[str, Any]], dict[str, Any]]
    name: str
    folder: Path
    source: str
    split: Split | None


def read_dataset(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    policy: Policy,
    *,
    videos_root: str | os.PathLike[str] | None = None,
    split: Split | None = None,
    source: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Dataset:
    """Read one or several data sets of any known form as one.

    Args:
        paths: files or folders, each of one of the FORMS.
        policy: whose category ids the labels become.
        videos_root: where the videos are; without it relative paths are relative to the file, in a
            benchmark to its folder.
        split: of records that do not say theirs. Without it a benchmark is `test`; SFT data are
            `val` or `test` where the file's name says so, else `train`.
        source: of records that do not say theirs, in place of one made from the path.
        names: further category names and labels, each with a category id or `safe`.

    Raises:
        DataError: a path is of no known form, or cannot be read at all.
        ValueError: `names` maps to something that the policy does not have.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    known = CategoryNames(policy, names)
    root = None if videos_root is None else Path(videos_root)
    records: dict[str, Record] = {}
    problems: list[Problem] = []
    entries = 0
    for path in map(Path, listed):
        form = recognise(path)
        for place in _sources(path, form, known):
            place = replace(place, source=source or place.source, split=split or place.split)
            for entry in place.entries():
                entries += 1
                read = _read(entry, place, form, known, root)
                if isinstance(read, Record) and read.id in records:
                    read = _repeated(read, entry, form, records, problems)
                if isinstance(read, Record):
                    records[read.id] = read
                else:
                    problems.append(read)
    return Dataset(tuple(records.values()), tuple(problems), entries)


def recognise(path: Path) -> Form:
    """Which form a path has, from its content.

    Raises:
        DataError: none that is known; the message says which are and what was found.
    """
    if path.is_dir():
        if _table(path) is not None:
            return "folder"
        if (path / "records.jsonl").is_file():
            return "records"
        if next(path.rglob(f"*{_SUFFIX}"), None) is not None:
            return "benchmark"
        inside = sorted(p.name for p in path.iterdir())
        found = f"a folder with {', '.join(inside[:8]) or 'nothing in it'}"
        raise _unknown(path, found + (", ..." if len(inside) > 8 else ""))
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    if path.suffix.lower() == ".csv":
        return "folder"
    first: Entry | None = None
    try:
        for entry in iter_entries(path):
            first = first or entry
            for form, keys in _KEYS.items():
                if entry.value is not None and keys <= entry.value.keys():
                    return form
            if entry.position >= _LOOKED_AT:
                break
    except DataError as error:
        raise _unknown(path, str(error).removeprefix(f"{path}: ")) from error
    if first is None:
        raise _unknown(path, "no entry")
    keys_found = first.error if first.value is None else f"keys {', '.join(first.value)}"
    raise _unknown(path, f"at {first.where}: {keys_found}")


def _unknown(path: Path, found: str) -> DataError:
    known = "".join(f"\n  - {text}" for text in FORMS.values())
    return DataError(f"{path}: no known form of data set. Found: {found}. Known forms:{known}")


def _sources(path: Path, form: Form, names: CategoryNames) -> Iterator[_Source]:
    if form == "benchmark":
        yield from _benchmark(path, names)
        return
    if form == "folder":
        table = (_table(path) if path.is_dir() else None) or path
        folder = _absolute(table).parent
        name = folder.name if table.name.lower() == "labels.csv" else table.stem
        yield _Source(
            lambda: iter_rows(table), lambda row: row_fields(row, names), name, folder, name, None
        )
        return
    file = path / "records.jsonl" if path.is_dir() else path
    folder = _absolute(file).parent
    name = f"{folder.name}/{file.stem}"
    if form == "records":
        yield _Source(lambda: iter_entries(file), dict, name, folder, "", None)
        return
    fields = conversation_fields if form == "conversations" else swift_fields
    yield _Source(
        lambda: iter_entries(file),
        lambda value: fields(value, names),
        name,
        folder,
        "safewatch-sft",
        _split_in(file.stem),
    )


def _benchmark(path: Path, names: CategoryNames) -> Iterator[_Source]:
    for file in sorted(path.rglob(f"*{_SUFFIX}")) if path.is_dir() else [path]:
        if not file.name.endswith(_SUFFIX):
            # Truth files of adaptive data look the same, but number each prompt's own categories.
            raise DataError(
                f"{file}: entries like the benchmark's, but the name does not end in {_SUFFIX}."
                " Integers are SafeWatch's own numbers only there: in adaptive truth files they are"
                " renumbered for every prompt. Read the SFT data instead, or rename a benchmark file"
            )
        filed = _FILED.fullmatch(file.parent.name)
        number = int(filed.group(1)) if filed else None
        root = _absolute(file).parent
        if filed:
            root = root.parents[1] if root.parent.name in ("real", "genai") else root.parent
        place = _absolute(file).relative_to(root)
        subcategory = file.name.removesuffix(_SUFFIX)
        part = place.parts[0] if place.parts[0] in ("real", "genai") else None

        def fields(
            value: dict[str, Any], number: int | None = number, subcategory: str = subcategory
        ) -> dict[str, Any]:
            return benchmark_fields(value, names, number, subcategory)

        yield _Source(
            lambda file=file: iter_entries(file),  # type: ignore[misc]
            fields,
            (place.parent / subcategory).as_posix(),
            root,
            f"safewatch-bench/{part}" if part else "safewatch-bench",
            "test",
        )


def _read(
    entry: Entry, place: _Source, form: Form, names: CategoryNames, root: Path | None
) -> Record | Problem:
    """The record of one entry, or why there is none."""
    if entry.value is None:
        return Problem("bad_entry", entry.where, entry.error or "", left_out=True)
    given = entry.value.get("id")
    if form == "records" or (form == "folder" and given):
        record_id = str(given) if given else entry.where
    elif form == "folder":
        record_id = f"{place.name}/{entry.value['video']}"
    else:
        record_id = f"{place.name}-{entry.position if given is None else given}"
    try:
        fields = place.fields(entry.value)
        if form != "records":
            fields["id"] = record_id
        if not fields.get("source") and place.source:
            fields["source"] = place.source
        if fields.get("split") is None:
            fields["split"] = place.split
        record = validate_record(fields, entry.where)
        if form == "records":
            _check(record, names.policy)
        video = find_video(record.video, place.folder, root)
        return record.model_copy(update={"video": video})
    except LeftOut as error:
        return Problem(error.kind, record_id, error.message, left_out=True)
    except (RecordError, ValueError) as error:
        return Problem("bad_entry", record_id, str(error), left_out=True)


def _check(record: Record, policy: Policy) -> None:
    """Refuse labels that the policy does not have and a response that says something else."""
    for field in ("labels", "true_labels", "asked"):
        unknown = set(getattr(record, field) or ()) - set(policy.labels[:-1])
        if unknown:
            raise LeftOut(
                "unknown_label",
                f"{field} holds {sorted(unknown)}; policy {policy.id!r} has"
                f" {', '.join(policy.labels[:-1])}",
            )
    if record.response is None:
        return
    asked = policy.labels[:-1] if record.asked is None else record.asked
    part = bare_policy((c.id, c.name) for c in policy.categories if c.id in asked)
    try:
        flags = parse_response(part, record.response).flags
    except ParseError as error:
        raise LeftOut("unreadable_response", str(error)) from None
    said = {category for category, flagged in flags.items() if flagged}
    if said != set(record.labels):
        raise LeftOut(
            "response_disagrees",
            f"labels are {sorted(record.labels)}, the response flags {sorted(said)}; correct one",
        )


def _repeated(
    record: Record, entry: Entry, form: Form, records: Mapping[str, Record], problems: list[Problem]
) -> Record | Problem:
    """What becomes of a record whose id is taken."""
    if form in ("records", "folder"):
        return Problem(
            "duplicate_id",
            record.id,
            f"used again at {entry.where}; ids must be unique: rename or remove one",
            left_out=True,
        )
    # Published SFT files are joined from parts that each count from 1: another example, not a copy.
    renamed = record.model_copy(update={"id": f"{record.id}@{entry.position}"})
    if renamed.id in records:  # two files of the same name
        renamed = record.model_copy(update={"id": f"{record.id}@{entry.where}"})
    problems.append(
        Problem("duplicate_id", record.id, f"used again at {entry.where}; kept as {renamed.id}")
    )
    return renamed


def _table(folder: Path) -> Path | None:
    return next((p for p in sorted(folder.iterdir()) if p.name.lower() == "labels.csv"), None)


def _absolute(path: Path) -> Path:
    # Not resolved: what a linked list names is relative to where the link lies.
    return Path(os.path.abspath(path))


def _split_in(stem: str) -> Split:
    """The split that a file's name tells: swift data come as `..._train_...` and `..._val_...`."""
    words = re.split(r"[^a-z]+", stem.lower())
    if "val" in words or "validation" in words:
        return "val"
    return "test" if "test" in words else "train"
