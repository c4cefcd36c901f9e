"""A folder of verdicts that is only ever added to: shards of JSON Lines or Parquet, each video once.

Knows files, keys and what a kill leaves behind. Does not know who judges the videos.

    verdicts-00000.jsonl     one verdict a line, `SHARD` lines; with Parquet, full shards are .parquet
    aside.jsonl              verdicts of videos on which a model failed or a process died
    copies.jsonl             videos whose bytes have a verdict under another path, or are not those asked for
    verdicts.run.json        what the verdicts depend on
    retries.jsonl            videos that are tried again after a process died on them

A verdict's key is the SHA-256 of the video's bytes; where the bytes could not be read, the path. Whatever process
is killed at whatever moment, no key is twice in these files, and all their lines are whole but for the last one of
a file, which the next run takes off. One process writes; a lock on the folder sees to that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from safelens.engine.manifest import Entry
from safelens.line_log import LineLog, LogError, claim
from safelens.verdict import Provenance, Verdict

Form = Literal["jsonl", "parquet"]
SHARD = 10_000
"""Verdicts in a shard."""
_LOCK_WAIT_S = 30.0
"""How long a killed run may take to let go of the folder."""
_COLUMNS = ("video", "sha256", "status", "flagged", "label", "confidence", "decided_by")


class VerdictFolder:
    """The folder, open for writing.

    Memory: about 0.2 KB a video that has a verdict.

    Args:
        folder: is made if it is not there.
        form: of full shards; the one being written is JSON Lines.
        shard: verdicts in a shard.

    Raises:
        LogError: another process writes there, or a file holds something else.
    """

    def __init__(self, folder: Path, *, form: Form = "jsonl", shard: int = SHARD) -> None:
        self.folder = folder
        self.outcomes: Counter[str] = Counter()
        """Verdicts by `ok`, `flagged`, `error` and so on, with those of earlier runs."""
        self._form = form
        self._shard = shard
        self._digests: set[bytes] = set()
        self._videos: set[bytes] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
        except OSError as error:
            raise LogError(
                f"{folder}: cannot be written ({error.strerror or error}); name another folder"
            ) from error
        self._aside = LineLog(folder / "aside.jsonl")
        self._copies = LineLog(folder / "copies.jsonl")
        for line in self._aside.read():
            self._note(line)
        for line in self._copies.read():
            self._note_copy(line["video"], line.get("asked"))
        self._number, self._count = 0, 0
        self._log = LineLog(self._path(0))
        self._read_shards()

    def _read_shards(self) -> None:
        for number, path in _shards(self.folder):
            if path.suffix == ".parquet":
                path.with_suffix(".jsonl").unlink(missing_ok=True)
                for row in _parquet_rows(path, _COLUMNS[:4]):
                    self._note(row)
                self._begin(number + 1)
                continue
            log, count = LineLog(path), 0
            for line in log.read():
                self._note(line)
                count += 1
            self._number, self._count, self._log = number, count, log
            if count >= self._shard:
                self._finish_shard()

    def claim(self, provenance: Provenance) -> None:
        """Say what the verdicts depend on. Raises LogError if those in the folder depend on something else."""
        card = self.folder / "verdicts"
        claim(card, {**settings(provenance), "form": self._form})

    def knows(self, entry: Entry) -> bool:
        """Whether a video has a verdict; a copy of one that has is noted as that."""
        if entry.sha256 is None:
            return _short(entry.video) in self._videos
        if self._has(entry.sha256):
            self.add_copy(entry.video, entry.sha256)
            return True
        return _short(entry.video, entry.sha256) in self._videos

    def known(self, digest: str) -> bool:
        """Whether bytes of this SHA-256 have a verdict."""
        return self._has(digest)

    def add_copy(self, video: str, sha256: str | None, *, asked: str | None = None) -> None:
        """Note that a video's bytes have a verdict, or that they are not those that were asked for.

        Raises:
            LogError: it cannot be written.
        """
        if _short(video, asked) not in self._videos:
            line = {"video": escaped(video), "sha256": sha256}
            self._copies.add(json.dumps(line | ({} if asked is None else {"asked": asked})))
            self._note_copy(video, asked)

    def add(self, line: str, asked: Mapping[str, str]) -> str:
        """Add a verdict, unless its key has one; it is in a file when this returns.

        Args:
            line: the verdict as JSON.
            asked: video to the digest that its manifest gives.

        Returns:
            The video, as the verdict names it.

        Raises:
            LogError: it cannot be written.
        """
        found = json.loads(line)
        video, sha256 = found["video"], found["sha256"]
        wanted = asked.get(video)
        if sha256 is not None and self._has(sha256):
            self.add_copy(video, sha256)
        elif _short(video) not in self._videos or (wanted is not None and sha256 is not None):
            self._write(line, found)
        if wanted is not None and wanted != sha256:
            self.add_copy(video, sha256, asked=wanted)
        return str(video)

    def _write(self, line: str, found: dict[str, Any]) -> None:
        if found["status"] == "model_error":
            self._aside.add(line)
        else:
            self._log.add(line)
            self._count += 1
        self._note(found)
        if self._count >= self._shard:
            self._finish_shard()

    def _has(self, sha256: str) -> bool:
        return bytes.fromhex(sha256)[:16] in self._digests

    def forget_failed(self) -> None:
        """Take back the verdicts that were set aside: those videos are missing again. Raises LogError."""
        for found in self._aside.read():
            self._videos.discard(_short(found["video"]))
            if found["sha256"] is not None:
                self._digests.discard(bytes.fromhex(found["sha256"])[:16])
            self.outcomes[outcome(found["status"], found["flagged"])] -= 1
        self._aside.close()
        self._aside.path.unlink(missing_ok=True)
        self._aside = LineLog(self._aside.path)

    def close(self) -> None:
        """Finish what is being written, and let go of the folder."""
        if self._form == "parquet" and self._count:
            self._finish_shard()
        for log in (self._log, self._aside, self._copies):
            log.close()
        self._lock.close()

    def _note(self, found: dict[str, Any]) -> None:
        self._videos.add(_short(found["video"]))
        if found["sha256"] is not None:
            self._digests.add(bytes.fromhex(found["sha256"])[:16])
        self.outcomes[outcome(found["status"], found["flagged"])] += 1

    def _note_copy(self, video: str, asked: str | None) -> None:
        self._videos.update((_short(video), _short(video, asked)))

    def _path(self, number: int) -> Path:
        return self.folder / f"verdicts-{number:05}.jsonl"

    def _begin(self, number: int) -> None:
        self._number, self._count, self._log = number, 0, LineLog(self._path(number))

    def _finish_shard(self) -> None:
        self._log.close()
        if self._form == "parquet":
            _to_parquet(self._log.path)
        self._begin(self._number + 1)


def read_verdicts(folder: Path) -> Iterator[Verdict]:
    """All verdicts of a folder, each key once, also while a run writes there.

    Raises:
        LogError: a file holds something else.
    """
    for _, found in _shards(folder):
        path = found if found.exists() else found.with_suffix(".parquet")
        if path.suffix == ".parquet":
            for row in _parquet_rows(path, ("verdict",)):
                yield Verdict.from_json(row["verdict"])
        else:
            for line in LineLog(path).read():
                yield Verdict.model_validate(line)
    for line in LineLog(folder / "aside.jsonl").read():
        yield Verdict.model_validate(line)


def settings(p: Provenance) -> dict[str, Any]:
    """What all verdicts of a folder have in common, for its card."""
    # A bundle goes by its digest: the same one may lie in another place or have another name.
    named = {"package", "policy", "knows", *(["bundle"] if p.bundle_sha256 else [])}
    return p.model_dump(mode="json", exclude=named)


def outcome(status: str, flagged: bool | None) -> str:
    """The word under which a verdict is counted."""
    if status in ("video_error", "model_error"):
        return "error"
    if status == "out_of_domain":
        return status
    return {True: "flagged", False: "safe", None: "undecided"}[flagged]


def _shards(folder: Path) -> list[tuple[int, Path]]:
    """Shards in order; where one is there in both forms, its Parquet is whole and comes alone."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("verdicts-*.jsonl")) + sorted(folder.glob("verdicts-*.parquet")):
        found[int(path.stem.split("-")[1])] = path
    return sorted(found.items())


def _to_parquet(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = list(LineLog(path).read())
    kinds = {"flagged": pa.bool_(), "confidence": pa.float64()}
    columns = {
        name: pa.array([row[name] for row in rows], kinds.get(name, pa.string()))
        for name in _COLUMNS
    }
    columns["verdict"] = pa.array([json.dumps(row) for row in rows], pa.string())
    part = path.with_suffix(".parquet.part")
    parquet.write_table(pa.table(columns), part, compression="zstd")
    os.replace(part, path.with_suffix(".parquet"))
    path.unlink()


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    for batch in ParquetFile(path).iter_batches(columns=list(columns)):
        yield from batch.to_pylist()


def escaped(video: str) -> str:
    """A path as its verdict carries it: bytes that are no text are escaped there."""
    return video.encode("utf-8", "backslashreplace").decode()


def _short(video: str, asked: str | None = None) -> bytes:
    name = escaped(video) if asked is None else f"{escaped(video)}\0{asked}"
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _locked(folder: Path) -> IO[bytes]:
    file = (folder / ".lock").open("ab")
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise LogError(
                    f"{folder}: another run is writing there; wait for it, or name another folder"
                ) from None
            time.sleep(0.1)
