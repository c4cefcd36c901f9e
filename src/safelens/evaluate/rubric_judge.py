"""Has a judge behind an OpenAI-compatible endpoint grade the explanations of a run.

Knows the file that names the judge, which explanations are graded, and how grades are kept. What the judge is
asked is the matter of `rubric`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from safelens.answer_cache import AnswerCache
from safelens.chat_errors import EndpointError, EndpointStop
from safelens.endpoint import Endpoint
from safelens.evaluate.cases import Case
from safelens.evaluate.endpoints import open_client, read_document, said
from safelens.evaluate.results import Results
from safelens.evaluate.rubric import (
    Message,
    Scores,
    corrected,
    read_scores,
    rubric,
    rubric_messages,
)
from safelens.evaluate.system import SystemsError
from safelens.prompts import ParseError

ATTEMPTS = 3
"""Answers asked for on one explanation, each told what was wrong before."""
GIVE_UP_AFTER = 8
"""Explanations in a row without an answer, after which the endpoint counts as down."""

Grade = Scores | Literal["unparsed", "failed"]


@dataclass(frozen=True)
class _Question:
    """One explanation to grade, under the key of all that its grades depend on."""

    id: str
    key: str
    messages: list[Message]


class RubricJudge:
    """Grades explanations, once; what an earlier run graded, the same words on the same truth, is not asked.

    Args:
        where: names file and judge in messages.
        settings: of its endpoint.
        folder: keeps readable answers, each as soon as it is there. Others are asked for again.

    Raises:
        SystemsError: the address or key cannot be used.
    """

    def __init__(self, where: str, settings: Endpoint, folder: Path) -> None:
        self._client = open_client(where, settings)
        self._settings = settings
        self._cache = AnswerCache(folder)
        self._down: str | None = None
        self._failed_in_a_row = 0

    def rate(
        self,
        results: Results,
        *,
        say: Callable[[str], None] = lambda message: None,
        on_done: Callable[[], None] = lambda: None,
    ) -> Results:
        """The results with each system's grades; a system that explains nothing gets none.

        Args:
            results: whose cases are graded.
            say: told of each explanation without grades.
            on_done: called for every explanation; `explained` says how many there are.

        Raises:
            OSError: the folder cannot be written.
            KeyboardInterrupt: passed on; what is graded is kept.
        """
        asked = {
            name: [self._question(results, case) for case in explained(results, name)]
            for name in results.systems
        }
        # Two stages of a bundle often say the same.
        questions = {q.key: q for found in asked.values() for q in found}
        for _ in range(sum(map(len, asked.values())) - len(questions)):
            on_done()
        grades: dict[str, Grade] = {}
        try:
            asyncio.run(self._all(questions, grades, say, on_done))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        systems = dict(results.systems)
        for name, found in asked.items():
            if found:
                mine = [grades[q.key] for q in found]
                decided = results.systems[name].metrics.counts.decided
                figures = rubric(
                    self._settings.model,
                    [grade for grade in mine if isinstance(grade, Scores)],
                    unparsed=mine.count("unparsed"),
                    failed=mine.count("failed"),
                    unexplained=decided - len(mine),
                )
                systems[name] = replace(systems[name], rubric=figures)
        return replace(results, systems=systems)

    def _question(self, results: Results, case: Case) -> _Question:
        messages = rubric_messages(results.policy, case)
        body = {"messages": messages} | self._fields()
        key = AnswerCache.key(self._client.base_url, self._client.model, body)
        return _Question(case.record.id, key, messages)

    def _fields(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": self._settings.max_new_tokens}

    async def _all(
        self,
        questions: Mapping[str, _Question],
        grades: dict[str, Grade],
        say: Callable[[str], None],
        on_done: Callable[[], None],
    ) -> None:
        queue = iter(questions.values())
        async with self._client, asyncio.TaskGroup() as group:

            async def work(queue: Iterator[_Question]) -> None:
                for question in queue:
                    grades[question.key], why = await self._one(question)
                    if why:
                        say(f"{question.id}: {grades[question.key]}: {why}")
                    on_done()

            for _ in range(self._settings.concurrency):
                group.create_task(work(queue))

    async def _one(self, question: _Question) -> tuple[Grade, str]:
        """Grades, or what became of them and why."""
        with suppress(ParseError):
            if (known := self._cache.get(question.key)) is not None:
                return read_scores(known["text"]), ""
        messages, why = question.messages, ""
        for _ in range(ATTEMPTS):
            if self._down is not None:
                return "failed", f"not asked: {self._down}"
            try:
                reply = await self._client.ask(messages, **self._fields())
            except (EndpointError, EndpointStop) as error:
                self._failed_in_a_row += 1
                if isinstance(error, EndpointStop) or self._failed_in_a_row >= GIVE_UP_AFTER:
                    self._down = str(error)
                return "failed", str(error)
            self._failed_in_a_row = 0
            try:
                scores = read_scores(reply.text)
            except ParseError as error:
                why = str(error)
                messages = corrected(question.messages, reply.text, why)
                continue
            self._cache.put(question.key, {"text": reply.text})
            return scores, ""
        return "unparsed", f"{why} ({ATTEMPTS} answers)"


def explained(results: Results, name: str) -> list[Case]:
    """The cases of a system whose answers are decided and have an explanation: those that are graded."""
    return [
        case
        for case in results.systems[name].cases
        if case.decided and case.answer is not None and case.answer.explanation
    ]


def read_judge(path: str | os.PathLike[str], folder: Path) -> RubricJudge:
    """Read the file that names the judge; the keys are those of `Endpoint`.

    Args:
        path: of the file.
        folder: for answers.

    Raises:
        SystemsError: it cannot be read or says something that is not understood, each problem with its line;
            or the endpoint cannot be used.
    """
    file = Path(path)
    document = read_document(file)
    problems = [(line or 1, message) for line, message in document.problems]
    if document.readable and not problems:
        if isinstance(document.data, dict):
            try:
                settings = Endpoint.model_validate(document.data)
                return RubricJudge(f"{file}:1: judge", settings, folder)
            except ValidationError as error:
                problems += [(document.line(e["loc"]), said(Endpoint, e)) for e in error.errors()]
        else:
            problems.append((1, f"expected a mapping of {', '.join(Endpoint.model_fields)}"))
    raise SystemsError("\n".join(f"{file}:{line}: {text}" for line, text in sorted(problems)))
