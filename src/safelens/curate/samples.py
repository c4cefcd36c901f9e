"""Records as samples of the influence passes: a decoded clip, the screening question, its answer.

Knows records, videos and the prompt. Knows nothing of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

from safelens.curate.passes import CurationError, Unusable
from safelens.data.records import Record
from safelens.train.clips import ClipReader
from safelens.train.embedder import Turns
from safelens.train.sequences import Example
from safelens.video import VideoError


class RecordSamples:
    """A file of records, each a video and the GUARDRAIL answer of its labels.

    A clip that violates several categories is of the class of its first label, as in training.

    Args:
        records: The samples; their videos' paths can be opened as they are.
        turns: Gives model, policy, question and answer.
        reader: Decodes.
        read_captions: The records' captions stand in the prompt, as in the training of such a model.

    Raises:
        CurationError: A label is not of the policy.
    """

    def __init__(
        self,
        records: Sequence[Record],
        turns: Turns,
        reader: ClipReader,
        *,
        read_captions: bool = False,
    ) -> None:
        self._records = records
        self._read_captions = read_captions
        self._turns = turns
        self._reader = reader
        classes = turns.policy.labels
        for record in records:
            for label in record.labels:
                if label not in classes:
                    raise CurationError(
                        f"record {record.id!r} has the label {label!r}; "
                        f"the policy {turns.policy.id!r} has {', '.join(classes)}"
                    )
        self.ids = [record.id for record in records]
        self.labels = [classes.index(record.label) for record in records]

    def example(self, row: int) -> Example:
        """The sample; `Unusable` where its video cannot be read or captions are missing."""
        record = self._records[row]
        if self._read_captions and not record.captions:
            raise Unusable(f"{record.id}: no captions; `safelens curate captions` adds them")
        try:
            clip = self._reader.read(record.video)
        except VideoError as error:
            raise Unusable(f"{record.id}: {error.message}") from error
        [video] = self._turns.vlm.encode_videos([clip.frames], [clip.timestamps])
        captions = record.captions if self._read_captions else ()
        return Example(video, (self._turns.screening(record.labels, captions),))
