"""The verdict on one video: the one stable wire format.

Knows which combinations of fields are honest. Knows nothing about models, videos or policies.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Status = Literal["ok", "partial", "out_of_domain", "video_error", "model_error"]
Stage = Literal["screen", "deliberate"]

_UNDECIDED = ("out_of_domain", "video_error", "model_error")
_SAFE = "safe"


def _encodable(value: object) -> object:
    """A file name may hold bytes that are no text; JSON can only carry them escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _is_none(value: object) -> bool:
    return value is None


Text = Annotated[str, BeforeValidator(_encodable)]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0)]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
    )


class CategoryScore(_Part):
    """One category of the policy: how probable its violation is, and whether it was flagged."""

    id: str
    name: str
    flagged: bool | None
    score: Unit


class Caption(_Part):
    """A sentence about one frame, `time_s` seconds from the video's start."""

    time_s: Seconds
    text: Text


class Evidence(_Part):
    """A stretch of the video, in seconds from its start, that speaks for a category."""

    start_s: Seconds
    end_s: Seconds
    category: str
    score: Unit

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_s < self.start_s:
            raise ValueError(
                f"evidence ends at {self.end_s} s, before it starts ({self.start_s} s)"
            )
        return self


class Region(Evidence):
    """Where in the frames of a stretch a category's policy looked most, as shares of their width and height.

    Attributes:
        score: Share of what the policy looked at in the whole video. No probability of a violation.
    """

    left: Unit
    top: Unit
    right: Unit
    bottom: Unit

    @model_validator(mode="after")
    def _open(self) -> Self:
        if self.right <= self.left or self.bottom <= self.top:
            raise ValueError(f"region from {self.left}, {self.top} to {self.right}, {self.bottom}")
        return self


class ErrorInfo(_Part):
    """What went wrong: a stable code, and a message that says what to do."""

    code: Annotated[str, Field(min_length=1)]
    message: Annotated[Text, Field(min_length=1)]


class Cost(_Part):
    """What the verdict cost, of what a video costs itself: the policy is read once for all.

    Attributes:
        gflops: Floating-point operations of all models, in units of 1e9; None where a server's are unknown.
        prompt_tokens: Read by vision-language models, not by the captioner.
        generated_tokens: Written by them.
    """

    gflops: Annotated[float, Field(ge=0.0)] | None = None
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    generated_tokens: Annotated[int, Field(ge=0)] = 0


class RemoteModel(_Part):
    """S2 on an inference server.

    Attributes:
        engine: Protocol; "openai" is that of vLLM, SGLang and others.
        base_url: Of the API.
        model: As the server names it.
        frames: How they were sent.
        structured: How the server was asked to keep the answer's form.
        scores: What S2's category scores are: "logprobs", how probable its booleans were; or "stated",
            the booleans themselves, 1 or 0.
    """

    engine: Literal["openai"]
    base_url: Text
    model: Text
    frames: Literal["images", "video"]
    structured: Literal["none", "regex", "json_schema"]
    scores: Literal["logprobs", "stated"]


LABELS_READ = (
    "The bundle's probe does not know this policy, so S1 scores the label answers, for which neither "
    "temperature nor tau was calibrated."
)
"""What `Provenance.screen_reader` "labels" means, for a reader."""


class Provenance(_Part):
    """What the verdict depends on: versions and SHA-256 digests.

    Attributes:
        package: Version of SafeLens.
        bundle: Name of the bundle or model.
        bundle_sha256: Digest of the bundle.
        policy: Id of the policy.
        policy_sha256: `Policy.sha256`.
        tau: Confidence at or above which the screen's answer stands.
        taus: In place of `tau` where the screen's answer is that class; None where there are none.
        layout: Order of the prompt, such as "policy_first".
        policy_encoding: "parallel" where each category was read alone; None, left out in JSON, where the policy
            was read as one text.
        prune_keep: Share of the video's tokens that stayed in the cache; None, left out in JSON, where all did.
        screen_reader: "labels" where the bundle was not made for the policy's classes or their encoding (see
            `LABELS_READ`); None, left out in JSON, otherwise.
        keyframe_shift_s: How far a keyframe could lie from a time of the sampling rule and stand in for it,
            seconds; None where every frame was decoded exactly.
        knows: What the bundle is limited to, in words for a reader, or None.
        remote: The model that deliberates in place of the bundle's; None where S2 runs with S1.
    """

    package: str
    bundle: Text | None = None
    bundle_sha256: str | None = None
    policy: str
    policy_sha256: str
    tau: Annotated[float, Field(ge=0.0)] | None = None
    taus: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    layout: str | None = None
    policy_encoding: Literal["parallel"] | None = Field(default=None, exclude_if=_is_none)
    prune_keep: Unit | None = Field(default=None, exclude_if=_is_none)
    screen_reader: Literal["labels"] | None = Field(default=None, exclude_if=_is_none)
    keyframe_shift_s: Seconds | None = None
    knows: str | None = None
    remote: RemoteModel | None = None


class Verdict(_Part):
    """What SafeLens says about one video; a combination of fields that misleads is refused.

    Attributes:
        schema_: The wire format's name, `schema` in JSON.
        video: The path as it was given; bytes that are no UTF-8 are written as escapes.
        sha256: Digest of the file, when it could be read.
        status: "ok"; "partial" (decided on what decoded of a truncated video); "out_of_domain",
            "video_error" and "model_error" decide nothing.
        flagged: Whether a category is violated; None when that is not decided.
        label: Top category id, or "safe"; None when not decided.
        confidence: Calibrated probability of `label`.
        categories: Every category of the policy.
        decided_by: The stage that decided.
        in_domain: How much the clip looks like the bundle's training data, 0..1; None if unknown.
        description: The video's content in the model's words.
        explanation: Why it was flagged or not, in the model's words.
        captions: What the captioner said of the frames.
        evidence: When in the video.
        regions: Where in its frames; only where video tokens are pruned by relevance, left out in JSON if there is none.
        error: Set for errors; may explain "partial" and "out_of_domain".
        timing: Seconds per stage.
        cost: Operations and tokens.
        provenance: What the verdict depends on.
    """

    schema_: Literal["safelens.verdict/1"] = Field(default="safelens.verdict/1", alias="schema")
    video: Text
    sha256: str | None = None
    status: Status
    flagged: bool | None = None
    label: str | None = None
    confidence: Unit | None = None
    categories: list[CategoryScore] = Field(default_factory=list)
    decided_by: Stage | None = None
    in_domain: Unit | None = None
    description: Text | None = None
    explanation: Text | None = None
    captions: list[Caption] = Field(default_factory=list)
    evidence: list[Evidence] = Field(default_factory=list)
    regions: list[Region] = Field(default_factory=list, exclude_if=lambda found: not found)
    error: ErrorInfo | None = None
    timing: dict[str, Seconds] = Field(default_factory=dict)
    cost: Cost = Field(default_factory=Cost)
    provenance: Provenance

    @model_validator(mode="after")
    def _honest(self) -> Self:
        ids = [category.id for category in self.categories]
        if len(set(ids)) != len(ids):
            raise ValueError(f"categories {ids}: an id occurs twice")
        if self.status in ("video_error", "model_error") and self.error is None:
            raise ValueError(f"status {self.status!r} without error; expected a code and a message")
        if self.status == "ok" and self.error is not None:
            raise ValueError(f"status 'ok' with error {self.error.code!r}; expected none")
        if self.status in _UNDECIDED or (self.status == "partial" and self.flagged is None):
            self._decides_nothing()
        elif self.status == "partial" and self.flagged is False:
            raise ValueError(
                "status 'partial' with flagged false: the part that did not decode may violate; "
                "expected flagged null"
            )
        else:
            self._decides()
        return self

    def _decides_nothing(self) -> None:
        for key in ("flagged", "label", "confidence"):
            if getattr(self, key) is not None:
                raise ValueError(f"status {self.status!r} decides nothing; expected {key} null")
        if self.status in _UNDECIDED and self.decided_by is not None:
            raise ValueError(f"status {self.status!r} decides nothing; expected decided_by null")
        for category in self.categories:
            if category.flagged is not None:
                raise ValueError(
                    f"status {self.status!r} decides nothing; expected flagged null for the "
                    f"category {category.id!r}"
                )

    def _decides(self) -> None:
        for key in ("flagged", "label", "confidence", "decided_by"):
            if getattr(self, key) is None:
                raise ValueError(f"status {self.status!r} without {key}; expected a decision")
        if not self.categories:
            raise ValueError(f"status {self.status!r} without categories; expected the policy's")
        for category in self.categories:
            if category.flagged is None:
                raise ValueError(f"category {category.id!r} undecided in a decided verdict")
        flagged = [category.id for category in self.categories if category.flagged]
        if self.flagged != bool(flagged):
            raise ValueError(f"flagged is {self.flagged}, but the flagged categories are {flagged}")
        if self.label not in (flagged or [_SAFE]):
            raise ValueError(f"label {self.label!r}; expected one of {flagged or [_SAFE]}")

    def to_json(self) -> str:
        """The verdict as one line of JSON."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, line: str | bytes) -> Verdict:
        """Read what `to_json` wrote.

        Raises:
            pydantic.ValidationError: When it is no verdict of this schema.
        """
        return cls.model_validate_json(line)
