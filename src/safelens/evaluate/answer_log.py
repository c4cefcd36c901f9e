"""Answers on disk: those of one system by video, which later runs take up, and files of a run's answers.

Knows files. Knows nothing of how an answer comes about.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safelens.evaluate.answers import Answer
from safelens.evaluate.memory import PeakMemory
from safelens.line_log import LineLog, LogError, claim

Answers = Mapping[str, Answer]
"""Stage to answer."""


class AnswerLog:
    """What one system said of each video: a file named by all that its answers depend on.

    A video goes by the SHA-256 of its file, so that it is the same under any name or id. Beside the file lies
    `.run.json`, which tells in plain data what the answers depend on. With an answer goes the most memory that
    its run had taken by then.

    Args:
        folder: of such files.
        identity: all that the system's answers depend on besides the video.

    Raises:
        LogError: the folder cannot be written.

    Attributes:
        peak: the most memory of all runs that are in the file; None where none measured it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.path = folder / f"{digest}.jsonl"
        claim(self.path, json.loads(text))
        self._log = LineLog(self.path)
        self.peak: PeakMemory | None = None

    def read(self) -> dict[str, Answers]:
        """All that is there: SHA-256 of a video to its answers; to be called before `add`.

        Raises:
            LogError: the file cannot be read, or a whole line in it is none of these.
        """
        found: dict[str, Answers] = {}
        for number, line in enumerate(self._log.read(), start=1):
            try:
                given: dict[str, Any] = line["answers"]
                answers = {stage: Answer.model_validate(one) for stage, one in given.items()}
                found[str(line["video"])] = answers
                if "memory" in line:
                    self._took(PeakMemory.model_validate(line["memory"]))
            except (KeyError, AttributeError, ValidationError) as error:
                raise LogError(
                    f"{self.path}:{number}: no answers of a video; remove the line, and they are asked for "
                    "again"
                ) from error
        return found

    def add(self, video: str, answers: Answers, memory: PeakMemory | None = None) -> None:
        """Keep the answers on a video; they are in the file when this returns.

        Args:
            video: SHA-256 of its file.
            answers: by stage.
            memory: the most that the run took so far; None where it is not measured.

        Raises:
            LogError: the file cannot be written.
        """
        line: dict[str, Any] = {"video": video}
        line["answers"] = {stage: _plain(answer) for stage, answer in answers.items()}
        if memory is not None:
            line["memory"] = memory.model_dump()
            self._took(memory)
        self._log.add(json.dumps(line, ensure_ascii=False))

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _took(self, memory: PeakMemory) -> None:
        self.peak = memory if self.peak is None else self.peak.or_more(memory)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSON Lines, replacing the file in one step.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(_plain(answer), ensure_ascii=False) + "\n")
    os.replace(part, path)


def read_answers(path: str | os.PathLike[str]) -> list[Answer]:
    """Read what `write_answers` wrote.

    Raises:
        OSError: the file cannot be read.
        ValidationError: a line is no answer.
    """
    with open(path, encoding="utf-8") as file:
        return [Answer.model_validate_json(line) for line in file]


def _plain(answer: Answer) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_defaults=True)
