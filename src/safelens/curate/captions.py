"""Captions for records, one per sampled frame (Algorithm 1, line 14; section 4.2).

Knows records, clips and a captioner. Knows nothing of files: what is written, and how an interrupted
run goes on, is the caller's. Where the work runs, here or on a cluster, makes no other difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from safelens.bundle import ClipSettings
from safelens.captioner import Captioner
from safelens.data.records import Record
from safelens.train.clips import ClipReader, clips_ahead
from safelens.video import Clip, ClipOptions, VideoReader

BLOCK = 16
"""Records that a process on a cluster is given at a time."""


def captioned(
    records: Iterable[Record],
    reader: ClipReader,
    captioner: Captioner,
    *,
    batch: int = 8,
    replace: bool = False,
) -> Iterator[tuple[Record, str | None]]:
    """Give every record its captions, in order; the next videos decode meanwhile.

    The frames are those of the clip that `reader` gives: with the sampling of the cascade's reader, the
    captions are the very ones that S2 will be given.

    Args:
        records: Their videos' paths can be opened as they are.
        reader: Its `read(path)` gives a record's clip; `VideoError` where it cannot.
        captioner: Describes frames.
        batch: Frames in a forward pass, of one clip or of several.
        replace: Caption anew what has captions; else such a record is given as it is, and its video
            is not opened.

    Yields:
        The record with its captions, and None; or the record as it was, and why it has none.
    """
    every = list(records)
    wanted = (record for record in every if replace or not record.captions)
    waiting: list[tuple[Record, Clip]] = []
    with closing(clips_ahead(wanted, reader)) as clips:
        for record in every:
            clip = None if record.captions and not replace else next(clips)[1]
            if isinstance(clip, Clip) and (not waiting or _fits(waiting, clip, batch)):
                waiting.append((record, clip))
                continue
            yield from _described(waiting, captioner, batch)
            waiting = []
            if isinstance(clip, Clip):
                waiting.append((record, clip))
            else:
                yield record, clip.message if clip is not None else None
        yield from _described(waiting, captioner, batch)


@dataclass(frozen=True)
class CaptionWork:
    """`captioned` as an engine runs it, a block of records at a time; see `engine.mapping.Work`.

    Attributes:
        captioner: hub id or directory, there on every machine.
        max_new_tokens: of a caption.
        clip: how frames are sampled.
        batch: as of `captioned`.
        replace: as of `captioned`.
    """

    captioner: str
    max_new_tokens: int
    clip: ClipSettings
    batch: int
    replace: bool

    def load(self) -> Callable[[Iterable[Record]], Iterator[tuple[Record, str | None]]]:
        """Raises CaptionerError."""
        captioner = Captioner.load(self.captioner, max_new_tokens=self.max_new_tokens)
        reader = VideoReader(ClipOptions(**self.clip.model_dump()))  # ends with this process

        def run(records: Iterable[Record]) -> Iterator[tuple[Record, str | None]]:
            return captioned(records, reader, captioner, batch=self.batch, replace=self.replace)

        return run


def _fits(waiting: Sequence[tuple[Record, Clip]], clip: Clip, batch: int) -> bool:
    """Whether a clip's frames fit in one batch with those that wait."""
    return sum(len(c.frames) for _, c in waiting) + len(clip.frames) <= batch


def _described(
    waiting: Sequence[tuple[Record, Clip]], captioner: Captioner, batch: int
) -> Iterator[tuple[Record, None]]:
    if not waiting:
        return
    described = captioner.describe([clip for _, clip in waiting], batch)
    for (record, _), captions in zip(waiting, described, strict=True):
        yield record.model_copy(update={"captions": captions}), None
