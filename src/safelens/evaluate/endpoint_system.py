"""A model behind an OpenAI-compatible endpoint (vLLM, SGLang, a vendor) under evaluation.

Knows how frames travel: as JPEG in data URLs, one image each behind its time, or all as one video with their
times beside it, as vLLM takes it. The words are the matter of `styles`, HTTP that of `chat_client`.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Literal, Self

from safelens.bundle import ClipSettings
from safelens.chat_errors import EndpointError, EndpointStop
from safelens.evaluate.answers import Answer
from safelens.evaluate.styles import STYLES, StyleName
from safelens.evaluate.system import SCHEMA, failed, read_text
from safelens.policy import Policy
from safelens.video import Clip

if TYPE_CHECKING:
    from safelens.chat_client import ChatClient

Frames = Literal["images", "video"]
GIVE_UP_AFTER = 8
"""Videos in a row without an answer, after which the endpoint counts as down."""
JPEG_QUALITY = 90
_TICKS = 1000  # of a second, in which a video's frames are counted


class EndpointSystem:
    """One request a video: the policy first, which a server's prefix cache shares, then frames and question.

    Args:
        client: asks; its address and model's name tell the answers' origin.
        style: form of prompt and answer.
        policy: what it judges by.
        clip: how frames are sampled.
        frames: "images", which every server of image models takes, or "video", for video models in vLLM.
        max_new_tokens: budget of an answer.
        concurrency: most requests at a time.
    """

    stages: tuple[str, ...] = ("request",)
    local = False

    def __init__(
        self,
        client: ChatClient,
        style: StyleName,
        policy: Policy,
        *,
        clip: ClipSettings,
        frames: Frames,
        max_new_tokens: int,
        concurrency: int,
    ) -> None:
        self.clip = clip
        self.concurrency = concurrency
        self.down: str | None = None
        self._client = client
        self._style = STYLES[style]
        self._policy = policy
        self._frames: Frames = frames
        self._max_new_tokens = max_new_tokens
        self._failed_in_a_row = 0

    def identity(self) -> dict[str, Any]:
        """All that an answer depends on, as far as an endpoint lets it be known; no key is in it."""
        return {
            "schema": SCHEMA,
            "kind": "openai",
            "address": [self._client.base_url, self._client.model],
            "texts": [self._style.system(self._policy), self._style.question(self._policy)],
            "policy_sha256": self._policy.sha256,
            "clip": self.clip.model_dump(),
            "frames": self._frames,
            "jpeg_quality": JPEG_QUALITY,
            "max_new_tokens": self._max_new_tokens,
        }

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)

    async def answer(self, clip: Clip) -> dict[str, Answer]:
        """The endpoint's answer on a clip."""
        style, policy = self._style, self._policy
        content, fields = (as_images if self._frames == "images" else as_video)(clip)
        content.append({"type": "text", "text": style.question(policy)})
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": style.system(policy)},
            {"role": "user", "content": content},
        ]
        try:
            reply = await self._client.ask(
                messages, temperature=0, max_tokens=self._max_new_tokens, **fields
            )
        except (EndpointError, EndpointStop) as error:
            # A refusal may be about this video alone, so it takes several to call the endpoint down.
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= GIVE_UP_AFTER:
                self.down = f"{GIVE_UP_AFTER} videos in a row got no answer, the last: {error}"
            return {"request": failed(clip.sha256, clip.path, str(error))}
        self._failed_in_a_row = 0
        answer = read_text(
            style,
            policy,
            clip,
            reply.text,
            seconds={"request": reply.seconds},
            prompt_tokens=reply.prompt_tokens or 0,
            generated_tokens=reply.completion_tokens or 0,
        )
        return {"request": answer}


Content = tuple[list[dict[str, Any]], dict[str, Any]]
"""Parts of a user's message, and further fields of the request."""


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
