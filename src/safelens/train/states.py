"""S1's states of clips: what the probe and the domain guard are fitted on.

Knows the screening pass. Knows nothing of where clips come from or what is fitted. Where clips are screened, here or
on a cluster, makes no other difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from safelens.assembly import Encoding
from safelens.bundle import ClipSettings
from safelens.data.records import Record
from safelens.domain_features import domain_features
from safelens.engine.mapping import Died, Run, blocks_of, here
from safelens.policy import Policy
from safelens.reading import Layout, Prompt, SequentialPrompt
from safelens.screen import LAST_TOKENS
from safelens.train.clips import ClipReader, Decoded, decoded_once
from safelens.train.loop import TrainingError, load_for_training
from safelens.train.state_store import Screened, StateStore, video_key
from safelens.video import ClipOptions, VideoReader
from safelens.vlm import VisionLanguageModel

Row = tuple[str, str, torch.Tensor, np.ndarray]
"""What is kept of one clip: its record's id, its video's SHA-256, the question's states and the features."""

CHUNK = 32
"""Records whose states are kept together: what an interruption loses at most."""


@dataclass(frozen=True)
class States:
    """Of N clips, in the order of their records.

    Attributes:
        ids: Of the records.
        question: Hidden states of the question's last tokens, shape (N, T, D), in half precision.
        features: What the domain guard looks at, shape (N, F).
        labels: Class indices, shape (N,); -1 where the record is undecided.
        sha256: Of the videos' bytes.
        left_out: Record id to why it has no states.
    """

    ids: list[str]
    question: torch.Tensor
    features: np.ndarray
    labels: torch.Tensor
    sha256: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScreenWork:
    """The screening pass as an engine runs it, a block of records at a time; see `engine.mapping.Work`.

    Attributes:
        model: the embedder's hub id or directory, there on every machine.
        policy: gives the prompt.
        layout: order of the prompt.
        encoding: how policy and video are read.
        frame_pixels: pixels of a frame as the model sees it.
        batch: clips that are screened together.
    """

    model: str
    policy: Policy
    layout: Layout
    encoding: Encoding
    frame_pixels: int
    batch: int

    def load(self) -> Callable[[Sequence[Record]], Iterator[Row | str]]:
        """Raises ModelLoadError."""
        vlm = load_for_training(self.model, self.frame_pixels)
        # As the cascade samples: what is learned is what will be seen. The reader ends with this process.
        reader = VideoReader(ClipOptions(**ClipSettings().model_dump()))
        prompt = self.encoding.prompt(vlm, self.policy, self.layout)
        return lambda records: screened(vlm, prompt, reader, records, self.batch)


def collect_states(
    vlm: VisionLanguageModel,
    policy: Policy,
    records: Sequence[Record],
    reader: ClipReader,
    store: StateStore,
    *,
    batch: int = 8,
    layout: Layout = "policy_first",
    prompt: Prompt | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> States:
    """`gather_states` in this process, with an embedder that is there already.

    Args:
        vlm: The embedder.
        policy: Gives the prompt and the classes.
        records: What to screen.
        reader: Its `read(path)` gives a record's clip.
        store: Of this model, policy and form of prompt.
        batch: Clips that are screened together.
        layout: Order of the prompt, where none is given.
        prompt: How the policy is put to the model; as one text by default.
        on_progress: Called with the number of records done since the last call.
    """
    asked = prompt or SequentialPrompt(vlm, policy, layout)

    def screen(block: Sequence[Record]) -> Iterator[Row | str]:
        return screened(vlm, asked, reader, block, batch)

    return gather_states(here(screen), policy, records, store, on_progress)


def gather_states(
    run: Run[Record, Row | str],
    policy: Policy,
    records: Sequence[Record],
    store: StateStore,
    on_progress: Callable[[int], None] = lambda done: None,
) -> States:
    """Screen the clips that the store lacks, and give what is read of all (Algorithm 1, line 9).

    Records are screened in chunks that depend on their places alone, so that an interrupted and
    continued collection gives the very states of an uninterrupted one.

    Args:
        run: `ScreenWork` as an engine runs it.
        policy: Gives the classes.
        records: What to screen.
        store: Of this model, policy and form of prompt.
        on_progress: Called with the number of records done since the last call.

    Raises:
        TrainingError: No clip at all could be screened, or the store cannot be written.
        EngineError: The cluster cannot be reached, or the model not be loaded there.
    """
    keys = {record.id: video_key(record.video) for record in records}
    chunks = blocks_of(records, CHUNK)
    missing, known = [], set[str]()
    for chunk in chunks:
        # Of records that share a video one is screened.
        new = {keys[r.id]: r for r in chunk if keys[r.id] not in store and keys[r.id] not in known}
        missing.append(list(new.values()))
        known |= new.keys()
    failed: dict[str, str] = {}
    with closing(run([part for part in missing if part])) as results:
        for chunk, part in zip(chunks, missing, strict=True):
            found: list[Row] = []
            for record, result in islice(results, len(part)):
                if isinstance(result, Died):
                    failed[record.id] = f"each process that screened it died ({result})"
                elif isinstance(result, str):
                    failed[record.id] = result
                else:
                    found.append(result)
                on_progress(1)
            if found:
                ids, digests, question, features = zip(*found, strict=True)
                store.add(
                    Screened(
                        [keys[i] for i in ids],
                        list(digests),
                        torch.stack(question),
                        torch.from_numpy(np.stack(features)),
                    )
                )
            on_progress(len(chunk) - len(part))
    ready = [record for record in records if keys[record.id] in store]
    if not ready:
        raise TrainingError("no clip could be screened; `safelens data check` says why")
    seen = store.read([keys[record.id] for record in ready])
    why = {keys[i]: reason for i, reason in failed.items()}
    return States(
        [record.id for record in ready],
        seen.question,
        seen.features.numpy(),
        torch.tensor([-1 if r.undecided else policy.labels.index(r.label) for r in ready]),
        seen.sha256,
        {r.id: why[keys[r.id]] for r in records if keys[r.id] not in store},
    )


def screened(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    reader: ClipReader,
    records: Sequence[Record],
    batch: int,
) -> Iterator[Row | str]:
    """What is kept of each record's clip, or why there is nothing to keep; the next videos decode meanwhile."""
    failed: dict[str, str] = {}
    batches = decoded_once(records, reader, batch, failed)
    for together, clips in zip(blocks_of(records, batch), batches, strict=True):
        rows = {row[0]: row for row in _screened(vlm, prompt, clips, failed)} if clips else {}
        for record in together:
            yield rows.get(record.id) or failed[record.id]


def _screened(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    clips: list[Decoded],
    failed: dict[str, str],
) -> list[Row]:
    """What is kept of one batch; clips whose states are no numbers go to `failed`."""
    videos = vlm.encode_videos([d.clip.frames for d in clips], [d.clip.timestamps for d in clips])
    prefilled = prompt.prefill(videos)
    found: list[Row] = []
    for row, decoded in enumerate(clips):
        question = prefilled.tail_states(row, LAST_TOKENS).to(torch.float16).cpu()
        features = domain_features(prefilled, row, vlm.patch_shape)
        if bool(question.isfinite().all()) and bool(np.isfinite(features).all()):
            found.append((decoded.record.id, decoded.clip.sha256, question, features))
        else:
            failed[decoded.record.id] = (
                "the model's states of it are no numbers in half precision; check the model"
            )
    return found
