"""Finds what is wrong with the videos and the make-up of a data set.

Knows missing and unreadable files, the same content twice, content that leaks between splits, and
classes without records. Knows nothing of forms of data sets: it is given records.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safelens.data.problems import Problem
from safelens.data.records import Record
from safelens.policy import SAFE, Policy

if TYPE_CHECKING:
    from safelens.data.fingerprint import Fingerprint
    from safelens.video import Clip


@dataclass(frozen=True)
class Look:
    """What one video file turned out to be.

    Attributes:
        sha256: of its bytes; None where it could not be read.
        looks: of its frames; None where none decoded.
        problem: kind and message where something is wrong with the file.
    """

    sha256: str | None
    looks: "Fingerprint | None"
    problem: tuple[str, str] | None = None


@dataclass
class Checker:
    """Looks at every video of a data set once, then says what is wrong.

    `look` may be interrupted; `problems` then speaks of what was looked at.

    Args:
        records: their videos must be absolute paths, as `read_dataset` gives them.
        policy: of the labels.
        near_duplicates: compare how videos look, besides their bytes.
    """

    records: Sequence[Record]
    policy: Policy
    near_duplicates: bool = True
    seen: dict[str, Look] = field(default_factory=dict)

    @property
    def videos(self) -> list[str]:
        """Paths of all videos, each once."""
        return list(dict.fromkeys(record.video for record in self.records))

    def look(self, on_progress: Callable[[int], None] | None = None) -> None:
        """Decode and hash every video that has not been looked at.

        Args:
            on_progress: called after every video with how many are done.
        """
        from safelens.data.fingerprint import CLIP_OPTIONS
        from safelens.video import VideoReader

        with VideoReader(CLIP_OPTIONS) as reader:
            for path in self.videos:
                if path not in self.seen:
                    self.seen[path] = _look(path, reader.read)
                if on_progress is not None:
                    on_progress(len(self.seen))

    def problems(self) -> list[Problem]:
        """Everything that is wrong, by record, then of the data set as a whole."""
        found = self._files()
        same = self._same_content()
        found += _report_same(same)
        found += self._groups()
        if self.near_duplicates:
            found += _report_near(self._near())
        return found + class_problems(self.records, self.policy)

    def _files(self) -> list[Problem]:
        found = []
        for record in self.records:
            look = self.seen.get(record.video)
            if look is not None and look.problem is not None:
                kind, message = look.problem
                found.append(Problem(kind, record.id, message))
        return found

    def _same_content(self) -> list[tuple[Record, Record]]:
        """Each record whose bytes an earlier one has, after that one."""
        first: dict[str, list[Record]] = defaultdict(list)
        pairs = []
        for record in self.records:
            look = self.seen.get(record.video)
            if look is None or look.sha256 is None:
                continue
            earlier = first[look.sha256]
            # An earlier one of another split tells most: it leaks.
            match = next(
                (e for e in earlier if _crosses(e, record)), earlier[0] if earlier else None
            )
            if match is not None:
                pairs.append((match, record))
            if match is None or all(e.split != record.split for e in earlier):
                earlier.append(record)
        return pairs

    def _groups(self) -> list[Problem]:
        """Examples of one group, or a clip and its twin, in two splits."""
        first: dict[str, Record] = {}
        found = []
        for record in self.records:
            key = record.twin_of or record.id if record.group is None else f"group {record.group}"
            earlier = first.setdefault(key, record)
            if _crosses(earlier, record):
                group = f"cut from the same source ({record.group}) as"
                what = "shares its scene with its twin" if record.group is None else group
                found.append(_leak(earlier, record, what))
        return found

    def _near(self) -> list[tuple[Record, Record, float]]:
        """For each record the earlier one that looks most alike; one across splits goes first."""
        from safelens.data.fingerprint import near_pairs

        by_video: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            by_video[record.video].append(record)
        shown = [(path, look.looks) for path in by_video if (look := self.seen.get(path))]
        paths = [path for path, looks in shown if looks is not None]
        best: dict[str, tuple[Record, Record, float]] = {}
        for i, j, bits in near_pairs([looks for _, looks in shown if looks is not None]):
            if self.seen[paths[i]].sha256 == self.seen[paths[j]].sha256:
                continue
            for later in by_video[paths[j]]:
                for earlier in by_video[paths[i]]:
                    if _twins(earlier, later):
                        continue
                    known = best.get(later.id)
                    rank = (not _crosses(earlier, later), bits)
                    if known is None or rank < (not _crosses(known[0], later), known[2]):
                        best[later.id] = (earlier, later, bits)
        return [best[record.id] for record in self.records if record.id in best]


def class_problems(records: Iterable[Record], policy: Policy) -> list[Problem]:
    """Classes that no record has, and splits that lack a class which others have.

    Undecided records count for no class.
    """
    splits: dict[str | None, Counter[str]] = defaultdict(Counter)
    for record in records:
        if not record.undecided:
            splits[record.split].update(record.labels or (SAFE,))
    total: Counter[str] = sum(splits.values(), Counter())
    found = [
        Problem(
            "empty_class",
            None,
            f"no record of class {label!r}: it can be neither learned nor measured",
        )
        for label in policy.labels
        if not total[label]
    ]
    means = {
        "train": "it cannot be learned",
        "val": "influence on it is undefined, and no threshold can be set for it",
        "test": "it cannot be measured",
    }
    for split, text in means.items():
        if split in splits:
            found += [
                Problem("split_without_class", None, f"{split} has no record of {label!r}: {text}")
                for label in policy.labels
                if total[label] and not splits[split][label]
            ]
    return found


def _look(path: str, read: "Callable[[str], Clip]") -> Look:
    from safelens.data.fingerprint import fingerprint
    from safelens.video import VideoError

    try:
        clip = read(path)
    except VideoError as error:
        kind = "missing_video" if error.code == "not_found" else "unreadable_video"
        return Look(error.sha256, None, (kind, f"{error.code}: {error.message}"))
    problem = None
    if clip.truncated:
        notes = "; ".join(clip.notes)
        problem = ("truncated_video", f"{path}: a part could not be decoded ({notes})")
    return Look(clip.sha256, fingerprint(clip), problem)


def _crosses(a: Record, b: Record) -> bool:
    return a.split is not None and b.split is not None and a.split != b.split


def _twins(a: Record, b: Record) -> bool:
    """A clip and its safe twin look alike on purpose."""
    return (a.twin_of or a.id) == (b.twin_of or b.id)


def _conflict(a: Record, b: Record) -> bool:
    """Whether two records of one content contradict each other in a category that both speak of."""
    spoken = [set(r.asked) if r.asked is not None else None for r in (a, b)]
    different = set(a.labels) ^ set(b.labels)
    return any(all(s is None or label in s for s in spoken) for label in different)


def _leak(earlier: Record, later: Record, what: str) -> Problem:
    return Problem(
        "leak",
        later.id,
        f"in {later.split}, but {what} {earlier.id} in {earlier.split}: keep them in one split",
        other=earlier.id,
    )


def _report_same(pairs: list[tuple[Record, Record]]) -> list[Problem]:
    found = []
    for earlier, later in pairs:
        if _conflict(earlier, later):
            this, that = (", ".join(r.labels) or SAFE for r in (later, earlier))
            message = (
                f"labelled {this}, but {earlier.id} has the same bytes and is {that}: correct one"
            )
            found.append(Problem("label_conflict", later.id, message, other=earlier.id))
        if _crosses(earlier, later):
            found.append(_leak(earlier, later, "has the same bytes as"))
        else:
            one_file = os.path.realpath(earlier.video) == os.path.realpath(later.video)
            what = "names the same file as" if one_file else "has the same bytes as"
            message = f"{what} {earlier.id}"
            found.append(Problem("duplicate", later.id, message, other=earlier.id))
    return found


def _report_near(near: list[tuple[Record, Record, float]]) -> list[Problem]:
    found = []
    for earlier, later, bits in near:
        alike = f"{bits:.0f} of 256 bits differ"
        if _crosses(earlier, later):
            found.append(_leak(earlier, later, f"looks nearly the same ({alike}) as"))
        else:
            message = f"looks nearly the same as {earlier.id} ({alike})"
            if _conflict(earlier, later):
                this, that = (", ".join(r.labels) or SAFE for r in (later, earlier))
                message += f", but is labelled {this}, the other {that}"
            found.append(Problem("near_duplicate", later.id, message, other=earlier.id))
    return found
