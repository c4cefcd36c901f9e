"""What is evaluated, seen from the harness: something that gives answers on clips.

Knows the protocol, how answers on a clip are made, and what no system is believed. `safelens_system`,
`vlm_system` and `endpoint_system` keep the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from safelens.bundle import ClipSettings
from safelens.evaluate.answers import Answer
from safelens.evaluate.styles import Style
from safelens.outcome import truncated
from safelens.policy import SAFE, Policy
from safelens.prompts import ParseError
from safelens.video import Clip

if TYPE_CHECKING:
    from safelens.vlm_cost import Spent

SCHEMA = "safelens.answers/2"
"""Of what systems make of a clip; a new one makes every earlier answer count as another system's."""


class SystemsError(Exception):
    """A system cannot be used; the message says where it is named, what is wrong and what to do."""


class System(Protocol):
    """Answers on clips; entered while in use, which loads what it needs.

    Attributes:
        stages: what it gives an answer of, in order; each gives one on every clip.
        clip: how its clips are sampled.
        concurrency: how many clips it takes at a time.
        down: why it will answer nothing more, or None.
        local: whether its models run in this process, whose memory then tells what it needs.
    """

    stages: tuple[str, ...]
    clip: ClipSettings
    concurrency: int
    down: str | None
    local: bool

    def identity(self) -> dict[str, Any]:
        """All that its answers depend on besides the video, as plain data.

        Raises:
            SystemsError: a model that only loading it makes known cannot be loaded.
        """

    async def __aenter__(self) -> Self:
        """Load. Raises SystemsError."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of what is held."""

    async def answer(self, clip: Clip) -> dict[str, Answer]:
        """Stage to answer, with the clip's SHA-256 as id; what is raised makes all stages fail."""


def answered(clip: Clip, flagged: Sequence[str], label: str, **fields: Any) -> Answer:
    """A decision on a clip; of a truncated video only if it is a violation, since the rest may hold one.

    Args:
        clip: the clip.
        flagged: ids of the violated categories.
        label: one of these, or "safe".
        fields: further fields of the answer.
    """
    if clip.truncated and not flagged:
        message = f"{clip.path}: {truncated(clip).message}"
        return Answer(id=clip.sha256, outcome="undecided", error=message, **fields)
    return Answer(id=clip.sha256, outcome="decided", flags=tuple(flagged), label=label, **fields)


def read_text(style: Style, policy: Policy, clip: Clip, text: str, **fields: Any) -> Answer:
    """The answer that a model's text is; unparsed where it is none, whatever it looks like.

    Several flagged categories have no probabilities to choose by: the policy's first is the label.

    Args:
        style: the form that was asked for.
        policy: whose categories were asked for.
        clip: the clip.
        text: as the model wrote it.
        fields: further fields of the answer.
    """
    try:
        response = style.parse(policy, text)
    except ParseError as error:
        why = f"{clip.path}: the answer cannot be read: {error}"
        return Answer(id=clip.sha256, outcome="unparsed", text=text, error=why, **fields)
    flagged = [name for name, flag in response.flags.items() if flag]
    return answered(
        clip,
        flagged,
        flagged[0] if flagged else SAFE,
        text=text,
        description=response.description,
        explanation=response.explanation,
        **fields,
    )


def failed(video: str, path: str, error: BaseException | str, **fields: Any) -> Answer:
    """An answer that says what went wrong; it is tried again in the next run.

    Args:
        video: the answer's id.
        path: of the video.
        error: what was raised, or what to say of the file.
        fields: further fields of the answer.
    """
    if isinstance(error, BaseException):
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        error = f"the model failed ({cause}); the next run tries again"
    return Answer(id=video, outcome="failed", error=f"{path}: {error}", **fields)


def cost(spent: Sequence[Spent]) -> dict[str, Any]:
    """The fields of an answer that tell its cost, without seconds."""
    return {
        "gflops": sum(one.flops for one in spent) / 1e9,
        "prompt_tokens": sum(one.prompt for one in spent),
        "generated_tokens": sum(one.generated for one in spent),
    }
