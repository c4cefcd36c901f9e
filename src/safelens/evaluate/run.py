"""Runs a system over records: what was answered before is taken up, the rest is decoded and asked.

Knows records, videos and files, and that a bundle's two answers make a cascade. Knows nothing else of any
system, and nothing of right or wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safelens.data.records import Record
from safelens.evaluate.answer_log import AnswerLog, Answers, write_answers
from safelens.evaluate.answers import Answer
from safelens.evaluate.memory import MemoryMeter, PeakMemory
from safelens.evaluate.routing import OutsideDomain, route
from safelens.evaluate.safelens_system import Cascade
from safelens.evaluate.system import System, failed
from safelens.thresholds import Thresholds
from safelens.video import ClipOptions, VideoError, VideoReader, file_digest

CASCADE = "cascade"
"""Beside the stages of a bundle: what it says as a whole, at its own thresholds."""


@dataclass(frozen=True)
class Sample:
    """A record and the content of its video.

    Attributes:
        record: with an absolute path.
        sha256: of the video's file; None where it cannot be read.
        error: why not.
    """

    record: Record
    sha256: str | None
    error: str | None = None


def take_samples(
    records: Iterable[Record], *, on_done: Callable[[], None] = lambda: None
) -> list[Sample]:
    """Read every record's video once for its digest, which says whether it is known already."""
    samples = []
    for record in records:
        try:
            samples.append(Sample(record, file_digest(record.video)))
        except VideoError as error:
            samples.append(Sample(record, None, error.message))
        on_done()
    return samples


@dataclass(frozen=True)
class Run:
    """What a system said of all records.

    Attributes:
        answers: stage to answers, one a record, in the records' order and with their ids. Of a bundle
            "screen", "deliberate" and "cascade", or "screen" alone; of others one stage.
        files: stage to the file that holds them.
        earlier: records on whose video an earlier run has the answers.
        thresholds: of a bundle.
        outside_domain: of a bundle.
        knows: what a bundle is limited to, in words for a reader; to be shown wherever its answers are.
        memory: the most that the system took, in this run or in those that answered before; None of an endpoint.
    """

    answers: dict[str, list[Answer]]
    files: dict[str, Path]
    earlier: int
    thresholds: Thresholds | None = None
    outside_domain: OutsideDomain | None = None
    knows: str | None = None
    memory: PeakMemory | None = None


@dataclass
class _Asking:
    """One run of one system over the videos that it does not know."""

    system: System
    log: AnswerLog
    found: dict[str, Answers]
    say: Callable[[str], None]
    on_done: Callable[[], None]
    reader: VideoReader = field(init=False)
    decoding: asyncio.Lock = field(init=False)
    meter: MemoryMeter | None = field(init=False)

    async def all(self, samples: Sequence[Sample]) -> None:
        options = ClipOptions(**self.system.clip.model_dump())
        queue = iter(samples)
        self.decoding = asyncio.Lock()
        self.meter = MemoryMeter() if self.system.local else None
        with VideoReader(options) as self.reader:
            async with self.system, asyncio.TaskGroup() as group:
                slots = asyncio.Semaphore(self.system.concurrency)
                # One more than are asked at a time, so that the next video is decoded meanwhile.
                for _ in range(self.system.concurrency + 1):
                    group.create_task(self._work(queue, slots))

    async def _work(self, queue: Iterator[Sample], slots: asyncio.Semaphore) -> None:
        for sample in queue:
            answers = await self._one(sample, slots)
            assert sample.sha256 is not None
            self.found[sample.sha256] = answers
            reasons = [a.error for a in answers.values() if a.outcome == "failed"]
            if reasons:
                self.say(f"{sample.record.id}: {reasons[0]}")
            else:
                self.log.add(sample.sha256, answers, self.meter.read() if self.meter else None)
            self.on_done()

    async def _one(self, sample: Sample, slots: asyncio.Semaphore) -> Answers:
        path = sample.record.video
        if self.system.down is not None:
            return self._failed(sample, f"not asked: {self.system.down}")
        try:
            async with self.decoding:  # which the reader would wait for, and the clock with it
                began = time.perf_counter()
                clip = await asyncio.to_thread(self.reader.read, path)
                seconds = {"decode": time.perf_counter() - began}
        except VideoError as error:
            return self._failed(sample, error.message.removeprefix(f"{path}: "))
        except Exception as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            return self._failed(sample, f"the video could not be read ({cause})")
        if clip.sha256 != sample.sha256:
            return self._failed(sample, "the file changed while it was read; run again")
        async with slots:
            try:
                answers = await self.system.answer(clip)
            except Exception as error:
                return self._failed(sample, error)
        return {
            stage: answer.model_copy(update={"seconds": seconds | answer.seconds})
            for stage, answer in answers.items()
        }

    def _failed(self, sample: Sample, why: Exception | str) -> Answers:
        path, video = sample.record.video, sample.sha256 or ""
        return {stage: failed(video, path, why) for stage in self.system.stages}


def run_system(
    name: str,
    system: System,
    samples: Sequence[Sample],
    out: Path,
    *,
    say: Callable[[str], None] = lambda message: None,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """Have a system answer on all records; nothing that was answered before is asked again.

    Args:
        name: the system's; its answers go to `out/answers/NAME/STAGE.jsonl`.
        system: what is run; it is entered only where something is left to ask.
        samples: the records, from `take_samples`.
        out: answers by content are kept in `out/cache`, each as soon as it is there: an interrupted or killed
            run goes on when it is started again. Failed ones are not kept.
        say: told of each video that failed.
        on_done: called for every record.

    Raises:
        SystemsError: the system's models cannot be loaded.
        LogError: a file cannot be read or written.
        OSError: a file of answers cannot be written.
    """
    log = AnswerLog(out / "cache", system.identity())
    try:
        stages = set(system.stages)
        # A bundle's S1 may have been asked alone before.
        found = {video: a for video, a in log.read().items() if stages <= a.keys()}
        earlier = sum(sample.sha256 in found for sample in samples)
        unknown: dict[str, Sample] = {}
        for sample in samples:
            if sample.sha256 is not None and sample.sha256 not in found:
                unknown.setdefault(sample.sha256, sample)
        for _ in range(len(samples) - len(unknown)):
            on_done()
        asking = _Asking(system, log, found, say, on_done)
        if unknown:
            try:
                asyncio.run(asking.all(list(unknown.values())))
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
    finally:
        log.close()
    lost = [sample for sample in samples if sample.sha256 is None]
    for sample in lost:
        say(f"{sample.record.id}: {sample.error}")
    rows = [_named(system, sample, found) for sample in samples]
    answers = {stage: [row[stage] for row in rows] for stage in system.stages}
    thresholds: Thresholds | None = None
    outside: OutsideDomain | None = None
    knows: str | None = None
    if isinstance(system, Cascade):
        thresholds, outside = system.thresholds, system.outside_domain
        knows = system.knows
        if "deliberate" in system.stages:
            answers[CASCADE] = [
                route(row["screen"], row["deliberate"], thresholds, outside) for row in rows
            ]
    files = {stage: out / "answers" / name / f"{stage}.jsonl" for stage in answers}
    for stage, file in files.items():
        write_answers(file, answers[stage])
    return Run(answers, files, earlier, thresholds, outside, knows, log.peak)


def _named(system: System, sample: Sample, found: dict[str, Answers]) -> dict[str, Answer]:
    """A record's answers under its own id."""
    record = sample.record
    if sample.sha256 is None:
        why = (sample.error or "").removeprefix(f"{record.video}: ")
        return {stage: failed(record.id, record.video, why) for stage in system.stages}
    answers = found[sample.sha256]
    return {s: answers[s].model_copy(update={"id": record.id}) for s in system.stages}
