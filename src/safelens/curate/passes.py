"""Passes over a data set that store what influence is computed from: sharded, resumable, in chunks.

Knows files and samples. Knows nothing of which score is wanted: that is computed from what is stored.

One pass over the validation samples sums their gradients by class; one over the training samples takes
each gradient's dot product with those means and throws the gradient away. Both keep a random projection
of it, from which the whitened score and the full matrix can be had without the model. Processes share
the work by chunk; a chunk's file is written whole or not at all, so an interrupted pass goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from safelens.curate.gradients import GradientCollector
from safelens.curate.influence import ClassMeans
from safelens.curate.projection import FactoredProjection
from safelens.train.sequences import Example

CHUNK = 256
"""Samples in a file."""

Part = Literal["val", "train"]


class CurationError(Exception):
    """A pass that cannot be run or continued; the message says what to change."""


class Unusable(Exception):
    """A sample that gives no gradient; the message says why."""


class Samples(Protocol):
    """A data set as the passes read it."""

    @property
    def ids(self) -> Sequence[str]:
        """Of the samples."""

    @property
    def labels(self) -> Sequence[int]:
        """Class of each sample, an index."""

    def example(self, row: int) -> Example:
        """What the model reads and should answer; `Unusable` where there is none."""


@dataclass(frozen=True)
class Share:
    """This process's part of the work: every `of`-th chunk, from the `rank`-th."""

    rank: int = 0
    of: int = 1


class InfluenceStore:
    """The folder of one checkpoint's passes.

    Args:
        folder: New, empty, or of the same `about`.
        about: All that the numbers depend on; another value means another folder.

    Raises:
        CurationError: The folder holds something else.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        card = folder / "influence.json"
        if card.exists():
            found = json.loads(card.read_text("utf-8"))
            other = sorted(k for k in about.keys() | found.keys() if found.get(k) != about.get(k))
            if other:
                raise CurationError(
                    f"{folder} was begun with other settings ({', '.join(other)}): "
                    "name another folder, or remove this one"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise CurationError(f"{folder} is not empty and holds no influence.json: name another")
        folder.mkdir(parents=True, exist_ok=True)
        if not card.exists():
            text = json.dumps(about, indent=2) + "\n"
            _replace(card, lambda part: part.write_text(text, "utf-8"))

    @classmethod
    def open(cls, folder: Path) -> InfluenceStore:
        """The folder as an earlier run left it.

        Raises:
            CurationError: There was none.
        """
        card = folder / "influence.json"
        if not card.exists():
            raise CurationError(
                f"{folder} holds no influence.json: run `safelens curate influence`"
            )
        return cls(folder, json.loads(card.read_text("utf-8")))

    def chunk(self, part: Part, number: int) -> Path:
        """File of a chunk."""
        return self.folder / f"{part}-{number:05d}.parquet"

    def sums(self, share: Share) -> Path:
        """File of one process's sums over validation samples."""
        return self.folder / f"val-sums-{share.rank}-of-{share.of}.safetensors"

    def rows(self, part: Part) -> Any:
        """All stored rows of a part, a `pyarrow.Table` in the data set's order.

        Raises:
            CurationError: Nothing is stored.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = sorted(self.folder.glob(f"{part}-*.parquet"))
        if not files:
            raise CurationError(f"{self.folder} holds no {part} chunks: run the pass first")
        return pa.concat_tables(pq.read_table(f) for f in files)


def chunks_of(count: int, share: Share) -> Iterator[tuple[int, range]]:
    """Number and rows of this process's chunks."""
    for number, start in enumerate(range(0, count, CHUNK)):
        if number % share.of == share.rank:
            yield number, range(start, min(start + CHUNK, count))


@dataclass(frozen=True)
class Collection:
    """What both passes share.

    Attributes:
        collector: Of the model that influence is asked of.
        project: Of the gradients that are stored.
        store: Where to.
        classes: How many there are.
        share: This process's part of the work.
        batch: Samples that are run together.
        on_progress: Called with the number of samples done since the last call.
    """

    collector: GradientCollector
    project: FactoredProjection
    store: InfluenceStore
    classes: int
    share: Share = Share()
    batch: int = 8
    on_progress: Callable[[int], None] = lambda done: None

    def validation_pass(self, samples: Samples) -> None:
        """Sum this share's validation gradients by class (Algorithm 1, line 2), and store projections."""
        path = self.store.sums(self.share)
        means, done = self.no_means(), -1
        if path.exists():
            means, done = _load_sums(path)
        for number, rows in chunks_of(len(samples.ids), self.share):
            if number > done:
                self.validation_chunk(samples, number, rows, means)
            self.on_progress(len(rows))

    def validation_chunk(
        self, samples: Samples, number: int, rows: range, means: ClassMeans
    ) -> None:
        """Add a chunk's gradients to the sums, and save these and its projections."""

        def add(gradients: Tensor, labels: list[int]) -> list[dict[str, Any]]:
            means.add(gradients, torch.tensor(labels, dtype=torch.long))
            return [{} for _ in labels]

        self._write("val", number, self._rows(samples, rows, add))
        _save_sums(self.store.sums(self.share), means, number)

    def no_means(self) -> ClassMeans:
        """Sums of nothing."""
        return ClassMeans.empty(self.classes, self.collector.dimension)

    def validation_means(self) -> ClassMeans:
        """The sums of all processes; call it when every process has finished its validation pass.

        Raises:
            CurationError: A process's sums are missing.
        """
        shares = [Share(rank, self.share.of) for rank in range(self.share.of)]
        missing = [str(self.store.sums(s)) for s in shares if not self.store.sums(s).exists()]
        if missing:
            raise CurationError(
                f"no validation sums in {', '.join(missing)}: run that process again"
            )
        means = self.no_means()
        for share in shares:
            means = means.merged(_load_sums(self.store.sums(share))[0])
        return means

    def training_pass(self, samples: Samples, means: ClassMeans) -> None:
        """Each gradient's exact mean influence on every class, and its projection."""
        for number, rows in chunks_of(len(samples.ids), self.share):
            if not self.store.chunk("train", number).exists():
                self.training_chunk(samples, number, rows, means)
            self.on_progress(len(rows))

    def training_chunk(self, samples: Samples, number: int, rows: range, means: ClassMeans) -> None:
        """A chunk of that."""

        def compare(gradients: Tensor, labels: list[int]) -> list[dict[str, Any]]:
            return [{"tracin": row} for row in means.influence(gradients).tolist()]

        self._write("train", number, self._rows(samples, rows, compare))

    def _rows(
        self,
        samples: Samples,
        rows: range,
        use: Callable[[Tensor, list[int]], list[dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """A chunk's rows; `use` sees the gradients (B, D) of usable samples and gives more columns."""
        found: dict[int, dict[str, Any]] = {}
        for start in range(rows.start, rows.stop, self.batch):
            examples: dict[int, Example] = {}
            for row in range(start, min(start + self.batch, rows.stop)):
                found[row] = {"id": samples.ids[row], "label": samples.labels[row], "error": None}
                try:
                    examples[row] = samples.example(row)
                except Unusable as error:
                    found[row]["error"] = str(error)
            if not examples:
                continue
            gradients = self.collector(list(examples.values()))
            whole = torch.cat([w.flatten(1) for w in gradients.weights()], dim=1)
            lengths, projected = whole.norm(dim=1), self.project(gradients)
            finite = lengths.isfinite() & gradients.losses.isfinite()
            for row, good in zip(examples, finite.tolist(), strict=True):
                if not good:
                    found[row]["error"] = (
                        "its gradient is not a number: check the model and its type"
                    )
            usable = [row for row in examples if found[row]["error"] is None]
            columns = use(whole[finite], [samples.labels[row] for row in usable])
            kept = zip(
                usable,
                gradients.losses[finite].tolist(),
                lengths[finite].tolist(),
                projected[finite].tolist(),
                columns,
                strict=True,
            )
            for row, loss, length, z, more in kept:
                found[row] |= {"loss": loss, "length": length, "z": z} | more
        return [found[row] for row in rows]

    def _write(self, part: Part, number: int, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [
            ("id", pa.string()),
            ("label", pa.int32()),
            ("error", pa.string()),
            ("loss", pa.float32()),
            ("length", pa.float32()),
            ("z", pa.list_(pa.float32())),
        ]
        if part == "train":
            fields.append(("tracin", pa.list_(pa.float64())))
        table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        _replace(self.store.chunk(part, number), lambda partial: pq.write_table(table, partial))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    write(partial)
    os.replace(partial, path)


def _save_sums(path: Path, means: ClassMeans, last_chunk: int) -> None:
    from safetensors.torch import save_file

    saved = {"sums": means.sums, "counts": means.counts, "last_chunk": torch.tensor(last_chunk)}
    _replace(path, lambda partial: save_file(saved, partial))


def _load_sums(path: Path) -> tuple[ClassMeans, int]:
    from safetensors.torch import load_file

    saved = load_file(path)
    return ClassMeans(saved["sums"], saved["counts"]), int(saved["last_chunk"])
