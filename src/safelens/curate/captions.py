"""Captions for records, one per sampled frame (Algorithm 1, line 14; section 4.2).

Knows records, clips and a captioner. Knows nothing of files: what is written, and how an interrupted
run goes on, is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

from safelens.captioner import Captioner
from safelens.data.records import Record
from safelens.train.clips import ClipReader, clips_ahead
from safelens.video import VideoError


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
        batch: Frames in a forward pass.
        replace: Caption anew what has captions; else such a record is given as it is, and its video
            is not opened.

    Yields:
        The record with its captions, and None; or the record as it was, and why it has none.
    """
    every = list(records)
    wanted = (record for record in every if replace or not record.captions)
    with closing(clips_ahead(wanted, reader)) as clips:
        for record in every:
            if record.captions and not replace:
                yield record, None
                continue
            _, clip = next(clips)
            if isinstance(clip, VideoError):
                yield record, clip.message
            else:
                captions = captioner.describe(clip, batch)
                yield record.model_copy(update={"captions": captions}), None
