"""Answers of an endpoint, kept on disk by what was asked, so that nothing is paid for twice.

Knows hashes and files. Knows nothing of HTTP; no key or header ever reaches it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class AnswerCache:
    """A folder of answers, one file each, named by the SHA-256 of the question.

    Args:
        folder: made when the first answer is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(base_url: str, model: str, body: dict[str, Any]) -> str:
        """SHA-256 of all that decides an answer."""
        asked = [base_url, model, body]
        text = json.dumps(asked, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """What was answered; None if nothing was, or the file is damaged."""
        try:
            value = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError):
            return None
        whole = isinstance(value, dict) and isinstance(value.get("text"), str)
        return value if whole else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer, replacing an earlier one in one step.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(answer), "utf-8")
        os.replace(part, path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
