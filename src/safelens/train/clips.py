"""Batches of decoded records by number, the next one decoded while one is used.

Knows records, their order in an epoch and what to do with a video that cannot be read. Knows nothing of
losses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
from PIL import Image

from safelens.data.records import Record
from safelens.policy import Policy
from safelens.prompts import ParseError, parse_response
from safelens.train.embedder import LabelledClip
from safelens.train.loop import TrainingError
from safelens.train.reasoner import AugmentedClip
from safelens.video import Clip, VideoError
from safelens.vlm import VisionLanguageModel


class ClipReader(Protocol):
    """What gives clips: a `VideoReader`, or anything like it."""

    def read(self, path: str, /) -> Clip:
        """The clip of a record's video; `VideoError` where there is none."""


@dataclass(frozen=True)
class Decoded:
    """A record and its clip."""

    record: Record
    clip: Clip


class ClipBatches:
    """Batch b holds the b-th `size` records of an endless run of shuffled epochs.

    A video that cannot be read is left out of its batch and noted in `left_out`.

    Args:
        records: Their videos' paths can be opened as they are.
        reader: Decodes.
        size: Records in a batch; fewer where the data set is smaller.
        seed: Of the order.

    Attributes:
        left_out: Record id to why its video was left out.
    """

    def __init__(
        self, records: Sequence[Record], reader: ClipReader, *, size: int, seed: int
    ) -> None:
        if not records:
            raise TrainingError("no records to train on")
        self._records = records
        self._reader = reader
        self._size = min(size, len(records))
        self._seed = seed
        self._ahead: dict[int, Future[list[Decoded]]] = {}
        self._last = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="safelens-train")
        self.left_out: dict[str, str] = {}

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self._records) // self._size

    def rows(self, number: int) -> list[int]:
        """Rows of the data set in a batch; each epoch is a permutation of its own."""
        epoch, place = divmod(number, self.per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._records))
        return [int(i) for i in order[place * self._size : (place + 1) * self._size]]

    def __call__(self, number: int) -> list[Decoded]:
        """A batch's readable records.

        Raises:
            TrainingError: None of the batch's videos can be read.
        """
        future = self._ahead.pop(number, None) or self._pool.submit(self._read, number)
        step = max(1, number - self._last)  # processes that share the work ask for every n-th batch
        self._ahead = {number + step: self._pool.submit(self._read, number + step)}
        self._last = number
        found = future.result()
        if not found:
            ids = ", ".join(self._records[i].id for i in self.rows(number))
            raise TrainingError(f"no video of {ids} can be read; `safelens data check` says why")
        return found

    def close(self) -> None:
        """End the decoding thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, number: int) -> list[Decoded]:
        return _decoded([self._records[i] for i in self.rows(number)], self._reader, self.left_out)


def labelled(vlm: VisionLanguageModel, batch: Sequence[Decoded]) -> list[LabelledClip]:
    """Decoded records as the embedder's training takes them."""
    videos = vlm.encode_videos([d.clip.frames for d in batch], [d.clip.timestamps for d in batch])
    return [
        LabelledClip(
            video,
            d.record.labels,
            d.record.captions,
            d.record.description or "",
            d.record.explanation or "",
        )
        for d, video in zip(batch, videos, strict=True)
    ]


def has_trace(record: Record, policy: Policy) -> bool:
    """Whether S2 can learn from a record: captions, scores, and a reasoned answer to its labels."""
    if not record.captions or record.scores is None or record.response is None:
        return False
    try:
        found = parse_response(policy, record.response)
    except ParseError:
        return False
    flagged = {name for name, flag in found.flags.items() if flag}
    return bool(found.description and found.explanation) and flagged == set(record.labels)


def augmented(
    vlm: VisionLanguageModel, policy: Policy, batch: Sequence[Decoded]
) -> list[AugmentedClip]:
    """Decoded records for which `has_trace` holds, as the reasoner's training takes them."""
    found = []
    for decoded, clip in zip(batch, labelled(vlm, batch), strict=True):
        record = decoded.record
        assert record.response is not None
        assert record.scores is not None
        trace = parse_response(policy, record.response)
        told = replace(
            clip, description=trace.description or "", explanation=trace.explanation or ""
        )
        found.append(AugmentedClip(told, record.captions, record.scores))
    return found


def captioned_frames(batch: Sequence[Decoded]) -> tuple[np.ndarray, list[str]]:
    """Every caption of the records with the frame that is nearest in time.

    Frames of other sizes than the first record's are resized to it, as one array holds them all.
    """
    height, width = batch[0].clip.frames.shape[1:3]
    frames, texts = [], []
    for decoded in batch:
        for caption in decoded.record.captions:
            nearest = int(np.abs(decoded.clip.timestamps - caption.time_s).argmin())
            frame = decoded.clip.frames[nearest]
            if frame.shape[:2] != (height, width):
                frame = np.asarray(Image.fromarray(frame).resize((width, height)))
            frames.append(frame)
            texts.append(caption.text)
    return np.stack(frames), texts


def decoded_once(
    records: Sequence[Record], reader: ClipReader, size: int, left_out: dict[str, str]
) -> Iterator[list[Decoded]]:
    """Every record once, in order, `size` together; those that cannot be read go to `left_out`."""
    batch: list[Decoded] = []
    for number, (record, clip) in enumerate(clips_ahead(records, reader), start=1):
        if isinstance(clip, VideoError):
            left_out[record.id] = clip.message
        else:
            batch.append(Decoded(record, clip))
        if number % size == 0 or number == len(records):
            yield batch
            batch = []


def clips_ahead(
    records: Iterable[Record], reader: ClipReader, ahead: int = 8
) -> Generator[tuple[Record, Clip | VideoError], None, None]:
    """Each record with its clip, or with why there is none; the next `ahead` decode meanwhile."""

    def read(path: str) -> Clip | VideoError:
        try:
            return reader.read(path)
        except VideoError as error:
            return error

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="safelens-decode")
    waiting: deque[tuple[Record, Future[Clip | VideoError]]] = deque()
    source = iter(records)
    try:
        while True:
            for record in islice(source, ahead - len(waiting)):
                waiting.append((record, pool.submit(read, record.video)))
            if not waiting:
                return
            record, clip = waiting.popleft()
            yield record, clip.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decoded(
    records: Sequence[Record], reader: ClipReader, left_out: dict[str, str]
) -> list[Decoded]:
    found = []
    for record in records:
        try:
            found.append(Decoded(record, reader.read(record.video)))
        except VideoError as error:
            left_out[record.id] = error.message
    return found
