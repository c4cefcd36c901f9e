"""How a clip travels in a chat: the policy first, then frames with their times, then the question.

Knows how frames become JPEG in data URLs: one image each behind its time, which every server of image models
takes, or all as one video with their times beside it, as vLLM takes it. The words are the matter of others.
"""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

from safelens.video import Clip

Frames = Literal["images", "video"]
JPEG_QUALITY = 90
_TICKS = 1000  # of a second, in which a video's frames are counted

Content = tuple[list[dict[str, Any]], dict[str, Any]]
"""Parts of a user's message, and further fields of the request."""
Chat = tuple[list[dict[str, Any]], dict[str, Any]]
"""Messages, and further fields of the request."""


def chat_about(clip: Clip, frames: Frames, *, system: str | None, question: str) -> Chat:
    """A chat that asks about a clip; what is alike for all clips comes first, for a server's prefix cache.

    Args:
        clip: gives frames and their times.
        frames: "images", or "video" for video models in vLLM.
        system: the text before the video, or None.
        question: the text after it.
    """
    content, fields = (as_images if frames == "images" else as_video)(clip)
    content.append({"type": "text", "text": question})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages, fields


def as_images(clip: Clip) -> Content:
    """Each frame as an image behind a text of its time, such as `<1.5 seconds>`."""
    content: list[dict[str, Any]] = []
    for time, frame in zip(clip.timestamps, clip.frames, strict=True):
        url = f"data:image/jpeg;base64,{_jpeg(frame)}"
        content.append({"type": "text", "text": f"<{time:.1f} seconds>"})
        content.append({"type": "image_url", "image_url": {"url": url}})
    return content, {}


def as_video(clip: Clip) -> Content:
    """All frames as one video, with their places in it, as vLLM takes frames that were sampled already.

    Places count thousandths of a second: the model computes each frame's time as place / fps.
    """
    places = [round(float(time) * _TICKS) for time in clip.timestamps]
    duration = max(clip.duration_s or 0.0, float(clip.timestamps[-1]))
    described = {
        "fps": _TICKS,
        "frames_indices": places,
        "total_num_frames": max(round(duration * _TICKS), places[-1]) + 1,
        "duration": duration,
        "do_sample_frames": False,
    }
    url = "data:video/jpeg;base64," + ",".join(_jpeg(frame) for frame in clip.frames)
    content: list[dict[str, Any]] = [{"type": "video_url", "video_url": {"url": url}}]
    return content, {"media_io_kwargs": {"video": described}}


def _jpeg(frame: Any) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(data.getvalue()).decode()
