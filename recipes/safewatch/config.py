"""The recipe's settings: what a YAML file holds, checked once.

Knows names, types and bounds. Knows nothing of what is run with them; looks at no data and no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ConfigError(ValueError):
    """The file of settings cannot be used; the message says which setting and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Data(_Part):
    """Where examples and videos are."""

    train: list[str] = Field(min_length=1)
    val: str | None = None
    """The validation set of influence; None takes the training records' part val."""
    videos_root: str | None = None


class Training(_Part):
    """One training of the vision-language model."""

    batch: Count = 8
    """Clips of an optimizer step, over all processes together."""
    micro_batch: Count = 1
    """Of these, clips that one process runs at once."""
    epochs: Positive = 2
    lr: Positive = 1e-4
    rank: Annotated[int, Field(ge=0)] = 64
    """Of LoRA; 0 trains all weights."""


class Reasoner(Training):
    """Training of S2."""

    separate: bool = False
    """A model of its own, in place of an adapter that continues S1's cache."""


class Influence(_Part):
    """Influence and the filter on it."""

    score: Literal["whitened", "tracin"] = "whitened"
    rank: Count = 16
    batch: Count = 8


class Probe(_Part):
    """Fit of the probe."""

    steps: Count = 1000
    lr: Positive = 1e-4
    false_refusal_rate: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """Clips in domain that the guard may refuse."""


class Scores(_Part):
    """How every sample gets a score from a probe that has not seen it."""

    folds: Annotated[int, Field(ge=2)] | None = 5
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.folds is None) == (self.held_out is None):
            raise ValueError("give folds or held_out, and null for the other")
        return self


class Traces(_Part):
    """Who writes the reasoning traces."""

    generator: Literal["rules", "openai"] = "openai"
    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    concurrency: Count = 16

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.generator == "openai" and not (self.base_url and self.model):
            raise ValueError("generator openai needs base_url and model")
        return self


class BundleFields(_Part):
    """What the bundle says besides its parts."""

    tau: Annotated[float, Field(ge=0, le=1.01)] = 0.9
    outside_domain: Literal["escalate", "refuse"] = "escalate"
    knows: str | None = None
    card: str | None = None


class Assume(_Part):
    """What the plan cannot read off models and data."""

    records: Count = 48337
    validation: Count = 644
    kept: Share = 1.0
    frames: Annotated[int, Field(ge=2)] = 20
    caption_tokens: Count = 96
    trace_tokens: Count = 256
    flops_per_second: Positive
    flops_per_second_float32: Positive
    utilisation: Share
    model_shape: dict[str, Any] = {}
    captioner_shape: dict[str, Any] = {}


class Config(_Part):
    """All settings of the recipe; `safewatch.yaml` says where each is from."""

    root: str
    name: str
    policy: str = "default"
    data: Data
    model: str
    captioner: str
    processes: Count = 1
    frame_pixels: Count = 448 * 448
    bf16: bool = True
    embedder: Training = Training()
    influence: Influence = Influence()
    probe: Probe = Probe()
    scores: Scores = Scores()
    traces: Traces
    reasoner: Reasoner = Reasoner()
    bundle: BundleFields = BundleFields()
    assume: Assume

    @model_validator(mode="after")
    def _divides(self) -> Self:
        for name, part in (("embedder", self.embedder), ("reasoner", self.reasoner)):
            at_once = part.micro_batch * self.processes
            if part.batch % at_once:
                raise ValueError(
                    f"{name}.batch is {part.batch}, no multiple of micro_batch {part.micro_batch} x "
                    f"processes {self.processes} = {at_once}"
                )
        if not self.reasoner.rank and not self.reasoner.separate:
            raise ValueError("reasoner.rank 0 needs separate: true, as an adapter has a rank")
        return self


def load(path: str | Path) -> Config:
    """Read a file of settings.

    Raises:
        ConfigError: it cannot be read, or a setting is wrong; all that are wrong are named.
    """
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
        return Config.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()
        ]
        raise ConfigError(f"{path}: " + "; ".join(wrong)) from error
