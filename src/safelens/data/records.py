"""Records: one training or evaluation example a line, as JSON Lines.

Knows the fields of a Record, how a file of them is read and written, and how to say what is wrong
with a line. Knows nothing of how clips are made, decoded or moderated.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from safelens.verdict import Caption

Split = Literal["train", "val", "test"]
"""Which part of a data set an example belongs to."""

SAFE = "safe"
"""The class of an example that violates no category."""


class RecordError(ValueError):
    """A file of records cannot be used; the message names file and line."""


class Record(BaseModel):
    """One example: a video, what it is labelled, and what is known about it.

    `labels` is what a learner is given, `true_labels` what holds; they differ where label noise was
    asked for. From `true_labels` to `tags` it is truth that only generated data has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    """Unique within a file."""
    video: str = Field(min_length=1)
    """Path of the video, absolute or relative to the folder of the records file."""
    labels: tuple[str, ...]
    """Ids of the violated categories; empty for safe."""
    response: str | None = None
    """The text that a model should write for this example."""
    captions: tuple[Caption, ...] = ()
    """One sentence a sampled frame."""
    scores: dict[str, float] | None = None
    """Screening's probability per class (category ids and `safe`), where computed."""
    source: str
    """Where the example is from, for example `safeworld`."""
    split: Split | None = None
    """Part of the data set, if it is divided."""
    group: str | None = None
    """What the video was cut from; a split keeps the examples of one group together."""
    asked: tuple[str, ...] | None = None
    """Ids of the categories that `labels` speak of; None for all of the policy. Of the others it is
    not known whether the video violates them."""

    true_labels: tuple[str, ...] | None = None
    """The labels that hold, whatever `labels` says."""
    scenario: str | None = None
    """What is shown, as `category/subcategory`."""
    twin_of: str | None = None
    """Id of the violating example whose safe twin this is."""
    interval: tuple[float, float] | None = None
    """Start and end of the violation, in seconds from the video's start."""
    difficulty: str | None = None
    """What makes the example easy or hard."""
    tags: tuple[str, ...] = ()
    """Properties of the scene that policies may turn on."""
    description: str | None = None
    """What is to be seen, in words."""
    explanation: str | None = None
    """Why the labels hold."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in ("labels", "true_labels", "asked"):
            values: tuple[str, ...] = getattr(self, field) or ()
            if SAFE in values:
                raise ValueError(f"{field} holds {SAFE!r}: leave the list empty for a safe video")
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names a category twice: {list(values)}")
        if self.asked is not None and (unasked := set(self.labels) - set(self.asked)):
            raise ValueError(f"labels {sorted(unasked)} are not among asked {list(self.asked)}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval {list(self.interval)} is not 0 <= start <= end")
        return self

    @property
    def label(self) -> str:
        """The first category of `labels`, or `safe`: the class for single-label training.

        Means nothing where `undecided`.
        """
        return self.labels[0] if self.labels else SAFE

    @property
    def undecided(self) -> bool:
        """Whether nothing is flagged but not every category was asked for: unknown, not safe."""
        return not self.labels and self.asked is not None

    @property
    def mislabelled(self) -> bool | None:
        """Whether `labels` differ from the truth; None where the truth is unknown."""
        return None if self.true_labels is None else set(self.labels) != set(self.true_labels)

    def video_path(self, records_file: str | os.PathLike[str]) -> Path:
        """Where the video lies, given the file that the record was read from."""
        return Path(records_file).parent / self.video

    def beside(self, records_file: str | os.PathLike[str]) -> Self:
        """The record as that file holds it: a video below the file's folder by its relative path.

        The record's own path must be absolute, as `read_dataset` gives it.
        """
        folder = os.path.abspath(Path(records_file).parent)
        if os.path.commonpath([folder, self.video]) != folder:
            return self
        return self.model_copy(update={"video": os.path.relpath(self.video, folder)})

    def to_json(self) -> str:
        """One line of JSON without the fields that are unset."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(fields, ensure_ascii=False)


def iter_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Reads records from a JSON Lines file, one at a time; blank lines are skipped.

    Args:
        path: the file.

    Yields:
        Each record, in the order of the file.

    Raises:
        RecordError: the file is missing or not text, a line is not JSON, does not fit Record, or
            repeats an id; the message begins with `file:line`.
    """
    seen: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = _parse(line, f"{path}:{number}")
                if record.id in seen:
                    raise RecordError(
                        f"{path}:{number}: id {record.id!r} was used on line {seen[record.id]};"
                        " ids must be unique, so rename or remove one of the two"
                    )
                seen[record.id] = number
                yield record
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSON Lines"
        ) from error
    except OSError as error:
        raise RecordError(
            f"{path}: cannot be read ({error.strerror or error}); expected a JSON Lines file"
        ) from error


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Reads a whole file of records. Raises RecordError as `iter_records` does."""
    return list(iter_records(path))


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> int:
    """Writes records as JSON Lines, replacing the file in one step.

    Args:
        path: the file; missing parent folders are made.
        records: what to write, in this order.

    Returns:
        How many were written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    count = 0
    with open(part, "w", encoding="utf-8") as file:
        for record in records:
            file.write(record.to_json() + "\n")
            count += 1
    os.replace(part, path)
    return count


def validate_record(value: Any, where: str) -> Record:
    """A record from plain data.

    Raises:
        RecordError: the data does not fit Record; the message begins with `where`.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected a JSON object, found {type(value).__name__}")
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'record'}: {item['msg']}"
            for item in error.errors()
        )
        known = ", ".join(Record.model_fields)
        raise RecordError(f"{where}: {problems} (a record's fields are {known})") from error


def _parse(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{where}: not JSON ({error.msg} at column {error.colno});"
            " expected one JSON object a line"
        ) from error
    return validate_record(value, where)
