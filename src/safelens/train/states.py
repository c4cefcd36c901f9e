"""S1's states of clips: what the probe and the domain guard are fitted on.

Knows the screening pass. Knows nothing of where clips come from or what is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from safelens.policy import SAFE, Policy
from safelens.screen import LAST_TOKENS, Layout, domain_features, layout_of
from safelens.train.clips import Decoded
from safelens.vlm import VisionLanguageModel


@dataclass(frozen=True)
class States:
    """Of N clips, in the order they were given.

    Attributes:
        ids: Of the records.
        question: Hidden states of the question's last tokens, shape (N, T, D), in half precision.
        features: What the domain guard looks at, shape (N, F).
        labels: Class indices, shape (N,).
    """

    ids: list[str]
    question: torch.Tensor
    features: np.ndarray
    labels: torch.Tensor


def collect_states(
    vlm: VisionLanguageModel,
    policy: Policy,
    batches: Iterable[list[Decoded]],
    *,
    layout: Layout = "policy_first",
    on_progress: Callable[[int], None] = lambda done: None,
) -> States:
    """Screen clips and keep what is read of them (Algorithm 1, line 9).

    Args:
        vlm: The embedder.
        policy: Gives the prompt and the classes.
        batches: Clips that are screened together.
        layout: Order of the prompt.
        on_progress: Called with the number of clips done since the last call.

    Raises:
        ValueError: No clip at all.
    """
    parts = layout_of(vlm, policy, layout)
    head = vlm.prefill_text(parts.head)
    ids: list[str] = []
    question, features, labels = [], [], []
    for clips in batches:
        if not clips:
            continue
        videos = vlm.encode_videos(
            [d.clip.frames for d in clips], [d.clip.timestamps for d in clips]
        )
        prefilled = vlm.prefill_videos(head, videos, parts.tail)
        for row, decoded in enumerate(clips):
            ids.append(decoded.record.id)
            question.append(prefilled.tail_states(row, LAST_TOKENS).to(torch.float16).cpu())
            features.append(domain_features(prefilled, row, vlm.patch_shape))
            labels.append(policy.labels.index((decoded.record.labels or (SAFE,))[0]))
        on_progress(len(clips))
    if not ids:
        raise ValueError("no clip could be screened")
    return States(ids, torch.stack(question), np.stack(features), torch.tensor(labels))
