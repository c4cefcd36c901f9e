"""The append-only file of verdicts that `--resume` continues.

Knows the file: what it holds already, under which settings, and how an interrupted write is mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from safelens.cli._paths import UsageError

if TYPE_CHECKING:
    from safelens.verdict import Provenance, Verdict

_LINE_START = b'{"schema":"safelens.verdict/'


_Settings = tuple[tuple[str, object], ...]


def log_key(path: str) -> str:
    """A path as a verdict carries it."""
    return path.encode("utf-8", "backslashreplace").decode()


class VerdictLog:
    """An append-only file of verdicts, one JSON object a line; the last one on a video counts.

    Args:
        path: the file; it and its folder need not exist.
        resume: continue it; otherwise it must be new or empty.

    Raises:
        UsageError: the file holds something already, or something that is no verdict.

    Attributes:
        done: video to where its verdict begins, in bytes; without model errors.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.done: dict[str, int] = {}
        self._settings: dict[_Settings, int] = {}
        self._end = 0
        self._closes_line = False
        self._file: IO[bytes] | None = None
        if path.is_dir():
            raise UsageError(f"--out {path}: is a folder; expected the name of a file")
        if not path.exists() or path.stat().st_size == 0:
            return
        if not resume:
            raise UsageError(
                f"--out {path} exists and is not empty; continue it with --resume, or name a new file"
            )
        self._read()

    def _read(self) -> None:
        from pydantic import ValidationError

        from safelens.verdict import Verdict

        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                whole = line.endswith(b"\n")
                try:
                    verdict = Verdict.from_json(line)
                except ValidationError as error:
                    begun = line.startswith(_LINE_START) or _LINE_START.startswith(line)
                    if not whole and begun:
                        return  # the run was killed while it wrote this line
                    reason = error.errors()[0]["msg"]
                    raise UsageError(
                        f"{self.path}:{number}: no verdict ({reason}); --out continues only what this "
                        "command wrote. Repair the line or name a new file"
                    ) from None
                self._closes_line = not whole
                self._settings.setdefault(_settings(verdict.provenance), number)
                self.done.pop(verdict.video, None)
                if verdict.status != "model_error":
                    self.done[verdict.video] = self._end
                self._end += len(line)

    def check(self, provenance: Provenance) -> None:
        """Refuse to mix verdicts of different bundles, servers, policies, tau or sampling in one file.

        Raises:
            UsageError: names the first line that differs and how.
        """
        now = _settings(provenance)
        for then, number in self._settings.items():
            if then != now:
                different = [
                    f"{name} {a}, now {b}"
                    for (name, a), (_, b) in zip(then, now, strict=True)
                    if a != b
                ]
                raise UsageError(
                    f"{self.path}:{number} was made with other settings ({'; '.join(different)}); give "
                    "the same options as then, or name a new file"
                )

    def earlier(self, videos: Iterable[str]) -> Iterator[Verdict]:
        """The verdicts that are in the file already, of those videos, in the file's order."""
        from safelens.verdict import Verdict

        wanted = sorted(self.done[key] for key in map(log_key, videos) if key in self.done)
        if not wanted:
            return
        with self.path.open("rb") as file:
            for at in wanted:
                file.seek(at)
                yield Verdict.from_json(file.readline())

    def add(self, verdict: Verdict) -> None:
        """Append a verdict; it is in the file when this returns.

        Raises:
            OSError: the file cannot be written.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(self._end)
            if self._closes_line:
                self._file.write(b"\n")
        self._file.write(verdict.to_json().encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _settings(p: Provenance) -> _Settings:
    """What all verdicts of a file have in common, by name."""
    return (
        # A bundle goes by its digest: the same one may lie in another place or have another name.
        ("bundle", p.bundle if p.bundle_sha256 is None else None),
        ("bundle's SHA-256", p.bundle_sha256),
        ("policy's SHA-256", p.policy_sha256),
        ("tau", p.tau),
        ("tau by class", p.taus and tuple(sorted(p.taus.items()))),
        ("layout", p.layout),
        ("policy encoding", p.policy_encoding),
        ("share of video tokens kept", p.prune_keep),
        ("keyframes within", p.keyframe_shift_s),
        ("S2's server", p.remote),
    )
