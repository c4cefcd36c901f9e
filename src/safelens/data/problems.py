"""What can be wrong with a data set, and how it is said.

Knows the kinds of problems. Knows nothing of how they are found.
"""

from dataclasses import asdict, dataclass
from typing import Any

KINDS: dict[str, str] = {
    "bad_entry": "entries that cannot be read",
    "duplicate_id": "ids used twice",
    "unknown_label": "labels that the policy does not have",
    "unknown_name": "category names that are not the policy's",
    "unreadable_response": "responses without a readable answer",
    "response_disagrees": "responses that contradict the labels",
    "missing_video": "videos that are not there",
    "unreadable_video": "videos that cannot be read",
    "truncated_video": "videos of which a part cannot be read",
    "label_conflict": "same content, other labels",
    "leak": "the same content in two splits",
    "duplicate": "same content twice",
    "near_duplicate": "nearly the same pictures",
    "empty_class": "classes without a record",
    "split_without_class": "splits without a class",
}
"""Kind to a heading for it, in the order of a report."""


class DataError(ValueError):
    """A data set that cannot be read at all; the message names the file and what was expected."""


class LeftOut(Exception):
    """An entry that gives no record.

    Attributes:
        kind: one of KINDS.
        message: what is wrong and what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one record, or with the data set as a whole.

    Attributes:
        kind: one of KINDS.
        id: of the record; `file:line` where it has none; None for the whole data set.
        message: what is wrong and what to do.
        left_out: whether the record was left out for it.
        other: id of the other record, where two are concerned.
    """

    kind: str
    id: str | None
    message: str
    left_out: bool = False
    other: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without what is unset."""
        return {key: value for key, value in asdict(self).items() if value is not None}
