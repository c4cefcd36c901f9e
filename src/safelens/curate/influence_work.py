"""The influence passes of one checkpoint as an engine runs them, a chunk of samples at a time.

Knows the model, and that a chunk's process writes its results: gradients are too large to travel. Knows nothing of
engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safelens.bundle import ClipSettings
from safelens.curate.gradients import GradientCollector
from safelens.curate.influence import ClassMeans
from safelens.curate.passes import (
    Collection,
    CurationError,
    InfluenceStore,
    Part,
    Share,
    chunks_of,
)
from safelens.curate.projection import FactoredProjection
from safelens.curate.samples import RecordSamples
from safelens.data.records import Record
from safelens.engine.cluster import EngineError
from safelens.engine.mapping import Died, Run
from safelens.policy import Policy
from safelens.train.embedder import Turns
from safelens.train.loop import load_for_training
from safelens.video import ClipOptions, VideoReader


@dataclass(frozen=True)
class Chunk:
    """A chunk of a pass.

    Attributes:
        part: which pass.
        number: of the chunk.
        records: its samples.
        shares: in how many files the sums over validation samples lie.
    """

    part: Part
    number: int
    records: Sequence[Record]
    shares: int


@dataclass(frozen=True)
class InfluenceWork:
    """Both passes of one checkpoint; see `engine.mapping.Work`.

    Attributes:
        model: hub id or directory, there on every machine.
        policy: gives prompt and classes.
        folder: of the store, the same on every machine.
        about: the store's settings.
        batch: samples that are run together.
    """

    model: str
    policy: Policy
    folder: Path
    about: dict[str, Any]
    batch: int

    def parts(self) -> tuple[GradientCollector, Callable[[Sequence[Record]], RecordSamples]]:
        """What takes gradients, and what makes samples of records; the reader ends with this process.

        Raises:
            ModelLoadError: The model cannot be loaded.
            CurationError: It has no last block whose gradient can be taken.
        """
        turns = Turns(load_for_training(self.model, self.about["frame_pixels"]), self.policy)
        reader = VideoReader(ClipOptions(**ClipSettings().model_dump()))
        captions = bool(self.about["read_captions"])
        try:
            collector = GradientCollector(turns.vlm, turns.layout.head)
        except ValueError as error:
            raise CurationError(f"{self.model}: {error}") from error
        return collector, lambda rs: RecordSamples(rs, turns, reader, read_captions=captions)

    def collection(self, collector: GradientCollector, share: Share) -> Collection:
        """The passes over the store. Raises CurationError where that holds something else."""
        return Collection(
            collector,
            FactoredProjection(collector.layers, self.about["rank"], self.about["seed"]),
            InfluenceStore(self.folder, self.about),
            len(self.policy.labels),
            share,
            self.batch,
        )

    def load(self) -> Callable[[Sequence[Chunk]], Iterator[int]]:
        """For errors see `parts`; gives the number of samples done, whose results are on disk by then."""
        collector, samples = self.parts()
        every: Collection | None = None
        means: ClassMeans | None = None

        def run(chunks: Sequence[Chunk]) -> Iterator[int]:
            nonlocal every, means
            for chunk in chunks:
                every = every or self.collection(collector, Share(0, chunk.shares))
                found, rows = samples(chunk.records), range(len(chunk.records))
                if chunk.part == "val":
                    own = replace(every, share=Share(chunk.number, chunk.shares))
                    own.validation_chunk(found, chunk.number, rows, own.no_means())
                else:
                    means = means or every.validation_means()
                    every.training_chunk(found, chunk.number, rows, means)
                yield len(rows)

        return run


def run_passes(
    work: InfluenceWork,
    run: Run[Chunk, int],
    parts: Sequence[tuple[Part, Sequence[Record]]],
    on_part: Callable[[Part], None],
    on_progress: Callable[[int], None],
) -> None:
    """Both passes in processes of an engine; chunks that are there are not run again.

    Args:
        work: the passes; its store's folder is there.
        run: the same as an engine runs it.
        parts: the records of "val", then of "train".
        on_part: called when a pass begins.
        on_progress: called with the number of samples done since the last call.

    Raises:
        EngineError: Processes died, each on the same chunk; or the cluster cannot be reached, or the model not be
            loaded there.
    """
    store = InfluenceStore.open(work.folder)
    shares = shares_of(parts[0][1])
    for part, records in parts:
        on_part(part)
        todo: list[list[Chunk]] = []
        for number, rows in chunks_of(len(records), Share()):
            sums, file = store.sums(Share(number, shares)), store.chunk(part, number)
            if (sums if part == "val" else file).exists():
                on_progress(len(rows))
            else:
                todo.append([Chunk(part, number, records[rows.start : rows.stop], shares)])
        if not todo:
            continue
        with closing(run(todo)) as results:
            for chunk, done in results:
                if isinstance(done, Died):
                    raise EngineError(
                        f"each process that had {part} chunk {chunk.number} died ({done}); the other chunks that "
                        "are done are kept: give the same command again"
                    )
                on_progress(done)


def shares_of(val: Sequence[Record]) -> int:
    """In how many files the sums over validation samples lie where chunks are shared: one a chunk."""
    return sum(1 for _ in chunks_of(len(val), Share()))
