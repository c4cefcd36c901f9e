"""A plain vision-language model under evaluation: video, policy and question in, free text out.

Knows how the model is run and that its text is parsed. The words are the matter of `styles`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

from safelens.bundle import ClipSettings
from safelens.cascade import default_device
from safelens.evaluate.answers import Answer
from safelens.evaluate.styles import STYLES, StyleName
from safelens.evaluate.system import SCHEMA, SystemsError, cost, read_text
from safelens.policy import Policy
from safelens.video import Clip

if TYPE_CHECKING:
    from safelens.vlm import VisionLanguageModel
    from safelens.vlm_cache import Context


class VlmSystem:
    """A vision-language model, zero-shot or fine-tuned, that answers each video in one greedy decoding.

    As in a bundle, the policy is read once and its cache continued by every video; `gflops` and tokens
    are those of the video and what follows it.

    Args:
        where: names the system in messages.
        model: directory or hub id.
        style: form of prompt and answer.
        policy: what it judges by.
        clip: how frames are sampled.
        frame_pixels: pixels of a frame as the model sees it.
        max_new_tokens: budget of an answer.
    """

    stages: tuple[str, ...] = ("generate",)
    concurrency = 1
    down: str | None = None
    local = True

    def __init__(
        self,
        where: str,
        model: str,
        style: StyleName,
        policy: Policy,
        *,
        clip: ClipSettings,
        frame_pixels: int,
        max_new_tokens: int,
    ) -> None:
        self.clip = clip
        self._where = where
        self._model = model
        self._style = STYLES[style]
        self._policy = policy
        self._frame_pixels = frame_pixels
        self._max_new_tokens = max_new_tokens
        self._vlm: VisionLanguageModel | None = None
        self._head: Context | None = None

    def identity(self) -> dict[str, Any]:
        """All that an answer depends on; a model of the hub that is not here yet is fetched for it."""
        from safelens.vlm_loading import files_digest

        try:
            digest = files_digest(self._model)
        except Exception:  # of the hub's client, as many kinds as there are causes
            self._load()
            digest = files_digest(self._model)
        return {
            "schema": SCHEMA,
            "kind": "vlm",
            "model": digest,
            "texts": [self._style.system(self._policy), self._style.question(self._policy)],
            "policy_sha256": self._policy.sha256,
            "clip": self.clip.model_dump(),
            "frame_pixels": self._frame_pixels,
            "max_new_tokens": self._max_new_tokens,
            "device": default_device(),
        }

    def _load(self) -> VisionLanguageModel:
        from safelens.vlm import VisionLanguageModel
        from safelens.vlm_loading import ModelLoadError

        try:
            return VisionLanguageModel.load(
                self._model, device=default_device(), frame_pixels=self._frame_pixels
            )
        except ModelLoadError as error:
            raise SystemsError(f"{self._where}: {error}") from error

    async def __aenter__(self) -> Self:
        """Load the model. Raises SystemsError."""
        if self._vlm is None:
            self._vlm = await asyncio.to_thread(self._load)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._vlm = self._head = None

    async def answer(self, clip: Clip) -> dict[str, Answer]:
        """The model's answer on a clip; raises what the model raises."""
        return {"generate": await asyncio.to_thread(self._generate, clip)}

    def _generate(self, clip: Clip) -> Answer:
        from safelens.vlm_decoding import alone, reply

        vlm = self._vlm
        assert vlm is not None
        style, policy = self._style, self._policy
        parts = vlm.layout(style.question(policy), system=style.system(policy))
        if self._head is None:
            self._head = vlm.prefill_text(parts.head)
        began = time.perf_counter()
        videos = vlm.encode_videos([clip.frames], [clip.timestamps])
        context = vlm.prefill_videos(self._head, videos, parts.tail).context(0)
        program = reply(
            vlm,
            context.spent,
            vlm.ids(parts.closing).tolist(),
            max_new_tokens=self._max_new_tokens,
        )
        text = alone(vlm, context, program)
        seconds = {"generate": time.perf_counter() - began}
        return read_text(style, policy, clip, text, seconds=seconds, **cost([context.spent]))
