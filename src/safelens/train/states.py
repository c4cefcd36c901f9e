"""S1's states of clips: what the probe and the domain guard are fitted on.

Knows the screening pass. Knows nothing of where clips come from or what is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from safelens.data.records import Record
from safelens.domain_features import domain_features
from safelens.policy import Policy
from safelens.reading import Layout, Prompt, SequentialPrompt
from safelens.screen import LAST_TOKENS
from safelens.train.clips import ClipReader, Decoded, decoded_once
from safelens.train.loop import TrainingError
from safelens.train.state_store import Screened, StateStore, video_key
from safelens.vlm import VisionLanguageModel

_Row = tuple[str, str, torch.Tensor, np.ndarray]

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
    """Screen the clips that the store lacks, and give what is read of all (Algorithm 1, line 9).

    Records are screened in chunks that depend on their places alone, so that an interrupted and
    continued collection gives the very states of an uninterrupted one.

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

    Raises:
        TrainingError: No clip at all could be screened, or the store cannot be written.
    """
    keys = {record.id: video_key(record.video) for record in records}
    asked = prompt or SequentialPrompt(vlm, policy, layout)
    failed: dict[str, str] = {}
    for start in range(0, len(records), CHUNK):
        chunk = records[start : start + CHUNK]
        # Of records that share a video one is screened.
        missing = {keys[r.id]: r for r in chunk if keys[r.id] not in store}
        found: list[_Row] = []
        done = 0
        for clips in decoded_once(list(missing.values()), reader, batch, failed):
            if clips:
                found += _screened(vlm, asked, clips, failed)
            on_progress(len(clips))
            done += len(clips)
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
        on_progress(len(chunk) - done)
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


def _screened(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    clips: list[Decoded],
    failed: dict[str, str],
) -> list[_Row]:
    """What is kept of one batch; clips whose states are no numbers go to `failed`."""
    videos = vlm.encode_videos([d.clip.frames for d in clips], [d.clip.timestamps for d in clips])
    prefilled = prompt.prefill(videos)
    found: list[_Row] = []
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
