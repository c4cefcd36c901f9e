"""The frames that a verdict was made on, kept for people: one file of JPEGs, and where in it each one lies."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from safelens.contact import evidence_frames
from safelens.service.conclude import NO_FRAMES, Frames
from safelens.service.media import MediaStore

if TYPE_CHECKING:
    from safelens.cascade import Moderation

_QUALITY = 85


def keep_frames(moderation: Moderation, media: MediaStore, job: str) -> Frames:
    """Write a clip's frames. Raises OSError."""
    clip = moderation.clip
    if clip is None or not len(clip.frames):
        return NO_FRAMES
    marked = evidence_frames(clip.timestamps, moderation.verdict.evidence)
    data, index = io.BytesIO(), []
    for frame, time_s, evidence in zip(clip.frames, clip.timestamps, marked, strict=True):
        start = data.tell()
        Image.fromarray(frame).save(data, "JPEG", quality=_QUALITY)
        index.append(
            {
                "time_s": round(float(time_s), 3),
                "evidence": bool(evidence),
                "start": start,
                "bytes": data.tell() - start,
            }
        )
    name = f"frames/{job}"
    media.write(data.getvalue(), name)
    return Frames(index, name)
