"""Asks a system of videos: here, or in processes of a cluster that each hold it.

Knows clips, and how a video or an answer may fail. Knows nothing of what was answered before or where answers are
kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from safelens.assembly import default_device
from safelens.data.records import Record
from safelens.engine.cluster import Pool, placed
from safelens.engine.mapping import Died, blocks_of, mapped
from safelens.evaluate.answer_log import Answers
from safelens.evaluate.memory import MemoryMeter, PeakMemory
from safelens.evaluate.system import System, SystemsError, failed
from safelens.video import ClipOptions, VideoError, VideoReader

BLOCK = 8
"""Videos that a process on a cluster is given at a time."""


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


Settle = Callable[[Sample, Answers, PeakMemory | None], None]
"""Takes a video's answers, and the most memory that the process which gave them had taken by then."""


def ask(system: System, samples: Sequence[Sample], settle: Settle, pool: Pool | None) -> None:
    """Have every video answered.

    Args:
        system: what is asked; a server's is asked from here in any case, for the server does the work.
        samples: with their digests.
        settle: called as answers come.
        pool: processes on the cluster that this one is connected to; None to ask here.

    Raises:
        SystemsError: the system's models cannot be loaded.
        EngineError: nor in a process of the cluster.
    """
    if pool is None or not system.local:
        try:
            asyncio.run(_ask_here(system, samples, settle))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return
    work = AskWork(system, device_of(pool))
    with closing(mapped(work, blocks_of(samples, BLOCK), pool)) as results:
        for sample, result in results:
            if isinstance(result, Died):
                settle(sample, _failed(system, sample, f"each process asked died ({result})"), None)
            else:
                settle(sample, *result)


def device_of(pool: Pool) -> str:
    """Where models of a cluster's processes run."""
    return "cuda" if placed(pool).gpus else "cpu"


@dataclass(frozen=True)
class AskWork:
    """A system on a cluster; see `engine.mapping.Work`.

    Attributes:
        system: one whose models run in its own process, not entered yet.
        device: where its answers count as made.
    """

    system: System
    device: str

    def load(self) -> Callable[[Sequence[Sample]], list[tuple[Answers, PeakMemory]]]:
        """Raises SystemsError."""
        if (found := default_device()) != self.device:
            raise SystemsError(
                f"models would run on {found} where {self.device} is expected; see to --actor-gpus"
            )
        meter = MemoryMeter()
        reader = VideoReader(ClipOptions(**self.system.clip.model_dump()))  # ends with this process
        asyncio.run(self.system.__aenter__())

        def run(samples: Sequence[Sample]) -> list[tuple[Answers, PeakMemory]]:
            found: dict[str | None, Answers] = {}

            def keep(sample: Sample, answers: Answers) -> None:
                found[sample.sha256] = answers

            asyncio.run(_Asking(self.system, reader, keep).all(samples))
            return [(found[sample.sha256], meter.read()) for sample in samples]

        return run


async def _ask_here(system: System, samples: Sequence[Sample], settle: Settle) -> None:
    meter = MemoryMeter() if system.local else None

    def keep(sample: Sample, answers: Answers) -> None:
        settle(sample, answers, meter.read() if meter else None)

    with VideoReader(ClipOptions(**system.clip.model_dump())) as reader:
        async with system:
            await _Asking(system, reader, keep).all(samples)


@dataclass
class _Asking:
    """Some videos asked of a system that is entered."""

    system: System
    reader: VideoReader
    keep: Callable[[Sample, Answers], None]
    decoding: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def all(self, samples: Sequence[Sample]) -> None:
        queue = iter(samples)
        async with asyncio.TaskGroup() as group:
            slots = asyncio.Semaphore(self.system.concurrency)
            # One more than are asked at a time, so that the next video is decoded meanwhile.
            for _ in range(self.system.concurrency + 1):
                group.create_task(self._work(queue, slots))

    async def _work(self, queue: Iterator[Sample], slots: asyncio.Semaphore) -> None:
        for sample in queue:
            self.keep(sample, await self._one(sample, slots))

    async def _one(self, sample: Sample, slots: asyncio.Semaphore) -> Answers:
        path = sample.record.video
        if self.system.down is not None:
            return _failed(self.system, sample, f"not asked: {self.system.down}")
        try:
            async with self.decoding:  # which the reader would wait for, and the clock with it
                began = time.perf_counter()
                clip = await asyncio.to_thread(self.reader.read, path)
                seconds = {"decode": time.perf_counter() - began}
        except VideoError as error:
            return _failed(self.system, sample, error.message.removeprefix(f"{path}: "))
        except Exception as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            return _failed(self.system, sample, f"the video could not be read ({cause})")
        if clip.sha256 != sample.sha256:
            return _failed(self.system, sample, "the file changed while it was read; run again")
        async with slots:
            try:
                answers = await self.system.answer(clip)
            except Exception as error:
                return _failed(self.system, sample, error)
        return {
            stage: answer.model_copy(update={"seconds": seconds | answer.seconds})
            for stage, answer in answers.items()
        }


def _failed(system: System, sample: Sample, why: Exception | str) -> Answers:
    path, video = sample.record.video, sample.sha256 or ""
    return {stage: failed(video, path, why) for stage in system.stages}


def identity_of(system: System, pool: Pool | None) -> dict[str, Any]:
    """All that a system's answers depend on besides the video. Raises SystemsError."""
    found = system.identity()
    return found if pool is None or not system.local else found | {"device": device_of(pool)}
