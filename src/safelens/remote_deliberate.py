"""S2 on an inference server: a model behind an OpenAI-compatible endpoint reasons, S1 runs here.

Knows what is asked of the endpoint, and that whatever it answers is a readable answer or an error, never safe by
default. HTTP and its failures are the matter of `chat_client`, the words that of `prompts`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from safelens import prompts
from safelens.answer_form import Structured, form_fields
from safelens.answer_tokens import boolean_scores
from safelens.chat_errors import EndpointError, EndpointStop
from safelens.chat_thread import ChatThread
from safelens.chat_video import Frames, chat_about
from safelens.endpoint import Endpoint, open_client
from safelens.policy import Policy
from safelens.prompts import ParseError, Response
from safelens.verdict import Caption, RemoteModel
from safelens.video import Clip
from safelens.vlm_cost import Spent

if TYPE_CHECKING:
    from safelens.chat_client import Reply
    from safelens.deliberate import Deliberated
    from safelens.reading import Layout

GIVE_UP_AFTER = 8
"""Videos in a row without an answer, after which the endpoint counts as down."""
PAUSE_S = 60.0
"""How long an endpoint that is down is left alone before one more video tries."""
_TOP_LOGPROBS = 5


class Remote(Endpoint):
    """Where S2 runs in place of here, and what is asked of the server besides the answer."""

    max_new_tokens: int = Field(default=2048, ge=1)
    """Budget of an answer, with the thoughts of a model that thinks."""
    frames: Frames = "images"
    """How frames are sent; "video" is for video models in vLLM."""
    structured: Structured = "none"
    """How the server is asked to keep the answer's form; see `form_fields`."""
    logprobs: bool = False
    """Ask how probable each boolean was; else the category scores are the booleans, 1 or 0."""
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """For one whole answer; less patient than a run that writes or judges, since a video waits for it."""
    retries: int = Field(default=3, ge=0)
    """Of a request whose failure may pass."""


class RemoteDeliberator:
    """S2 for one policy, asked over HTTP; takes any number of threads.

    One request a video: the policy first, which a server's prefix cache shares, then frames, question, captions
    and S1's scores, in the words of the local S2.

    Args:
        remote: the endpoint.
        policy: gives request, answer and classes.
        layout: order of the prompt.

    Raises:
        EndpointStop: an address or key cannot be used, or the HTTP library is not there.

    Attributes:
        concurrency: most requests at a time; further callers wait.
    """

    def __init__(self, remote: Remote, policy: Policy, *, layout: Layout = "policy_first") -> None:
        self.concurrency = remote.concurrency
        self.policy = policy
        self._remote = remote
        client = open_client(remote)
        self._address = client.base_url
        self._where = f"{remote.model} at {client.base_url}"
        self._chat = ChatThread(client)
        self._failures = _Failures(self._where)
        self._question = prompts.question(policy)
        self._system: str | None = prompts.policy_prompt(policy)
        if layout == "video_first":
            self._question, self._system = f"{self._system}\n\n{self._question}", None
        self._fields: dict[str, Any] = {"temperature": 0, "max_tokens": remote.max_new_tokens}
        self._fields |= form_fields(policy, remote.structured)
        if remote.logprobs:
            self._fields |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}

    @property
    def provenance(self) -> RemoteModel:
        """What stands in verdicts; no key is in it."""
        return RemoteModel(
            engine="openai",
            base_url=self._address,
            model=self._remote.model,
            frames=self._remote.frames,
            structured=self._remote.structured,
            scores="logprobs" if self._remote.logprobs else "stated",
        )

    def deliberate(
        self, clip: Clip, captions: Sequence[Caption], scores: Mapping[str, float] | None
    ) -> Deliberated:
        """Ask about a clip, and wait (Algorithm 2, lines 9-12).

        Args:
            clip: gives the frames.
            captions: one a frame.
            scores: S1's probability of each label.

        Raises:
            EndpointError: no answer to this request after all retries.
            EndpointStop: the endpoint refuses, or has answered nothing for many videos and is left alone.
            ParseError: what it wrote is cut off or no answer, or says less than it was asked for.
        """
        from safelens.deliberate import Deliberated

        self._failures.check()
        request = prompts.deliberation_request(self.policy, captions, scores)
        messages, fields = chat_about(
            clip, self._remote.frames, system=self._system, question=self._question + request
        )
        try:
            reply = self._chat.ask(messages, **self._fields, **fields)
        except (EndpointError, EndpointStop) as error:
            why = " ".join(str(error).removeprefix(f"{self._address}: ").split())
            self._failures.add(why)
            raise type(error)(f"{self._where}: {why}") from error
        self._failures.clear()
        text = prompts.without_thoughts(reply.text)
        try:
            _check_whole(reply, text)
            found = self._parse(text)
            probabilities = self._scores(reply, found.flags)
        except ParseError as error:
            raise ParseError(f"{self._where} gave no answer that counts: {error}") from error
        spent = Spent(reply.prompt_tokens or 0, reply.completion_tokens or 0, math.nan)
        return Deliberated(
            found.description, found.explanation, found.flags, probabilities, text, spent
        )

    def _parse(self, text: str) -> Response:
        try:
            return prompts.parse_response(self.policy, text)
        except ParseError as error:
            if self._remote.structured != "none":
                raise
            hint = "--structured makes a server that can keep the form"
            raise ParseError(f"{error}; {hint}") from error

    def _scores(self, reply: Reply, flags: dict[str, bool]) -> dict[str, float]:
        if not self._remote.logprobs:
            return {name: float(flag) for name, flag in flags.items()}
        if reply.logprobs is None:
            raise ParseError("it sent no log probabilities; leave out --logprobs")
        return boolean_scores(self.policy, flags, reply.logprobs)

    def close(self) -> None:
        """End the connections."""
        self._chat.close()


def _check_whole(reply: Reply, text: str) -> None:
    """Raise ParseError for a text that the model did not end itself, whatever it looks like."""
    if reply.finish == "length":
        raise ParseError(
            f"cut off after {reply.completion_tokens or 'all its'} tokens; raise --max-new-tokens, or switch "
            "a thinking model's thoughts off"
        )
    if reply.finish not in ("stop", None):
        raise ParseError(f"it stopped because of {reply.finish!r}")
    if not text:
        raise ParseError("it wrote nothing, as a model does that refuses")


class _Failures:
    """Leaves an endpoint alone that is down, so that the rest of a run need not wait for it.

    A refusal may be about one video, so it takes several in a row. After a pause one video tries again.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._again = 0.0
        self._last = ""

    def check(self) -> None:
        """Raises EndpointStop while the endpoint is left alone."""
        with self._lock:
            now = time.monotonic()
            if self._in_a_row >= GIVE_UP_AFTER:
                if now < self._again:
                    raise EndpointStop(
                        f"{self._where} was not asked: {self._in_a_row} videos in a row got no answer, the "
                        f"last: {self._last}. See to the endpoint; --resume asks again"
                    )
                self._again = now + PAUSE_S

    def add(self, why: str) -> None:
        """A video got no answer."""
        with self._lock:
            self._in_a_row += 1
            self._again = time.monotonic() + PAUSE_S
            self._last = why

    def clear(self) -> None:
        """A video got an answer."""
        with self._lock:
            self._in_a_row = 0
