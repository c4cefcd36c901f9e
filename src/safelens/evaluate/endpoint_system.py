"""A model behind an OpenAI-compatible endpoint (vLLM, SGLang, a vendor) under evaluation.

Knows one request a video, and what its failures mean. The words are the matter of `styles`, how frames travel
that of `chat_video`, HTTP that of `chat_client`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from safelens.bundle import ClipSettings
from safelens.chat_errors import EndpointError, EndpointStop
from safelens.chat_video import JPEG_QUALITY, Frames, chat_about
from safelens.evaluate.answers import Answer
from safelens.evaluate.styles import STYLES, StyleName
from safelens.evaluate.system import SCHEMA, failed, read_text
from safelens.policy import Policy
from safelens.video import Clip

if TYPE_CHECKING:
    from safelens.chat_client import ChatClient

GIVE_UP_AFTER = 8
"""Videos in a row without an answer, after which the endpoint counts as down."""


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
        messages, fields = chat_about(
            clip, self._frames, system=style.system(policy), question=style.question(policy)
        )
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
