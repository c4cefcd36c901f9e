"""The bundle: a directory with all that a verdict depends on, verified at load.

Knows the files of a bundle, their digests and that they fit together. Runs no model: it hands paths
and settings to whoever builds the parts.

    bundle.yaml   this file's settings, and the SHA-256 of every other file
    policy.yaml   the policy that the probe's classes come from
    model/        the vision-language model      probe/    the probe
    captioner/    Florence-2                     deliberate/  the LoRA adapter (or another model)
    domain.safetensors   the domain guard        card.md   what it was trained on, and its limits
    calibration.json     the evidence for temperature and tau, where they were calibrated
    reliability.svg      its picture
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from safelens.policy import Policy, PolicyError
from safelens.thresholds import Thresholds
from safelens.video import ClipOptions

CONFIG = "bundle.yaml"
FORMAT = "safelens.bundle/1"


class BundleError(Exception):
    """A bundle that must not be used; the message says which part and why."""


def _inside(part: str) -> str:
    """A path that cannot lead out of the bundle, nor to a hidden file, whose digest is not kept."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", part, re.ASCII):
        raise ValueError(
            f"{part!r}: expected a path inside the bundle, of letters, digits, '_', '-', '.' and '/', "
            "whose parts begin with a letter, a digit or '_'"
        )
    return part


Part = Annotated[str, AfterValidator(_inside)]
Tau = Annotated[float, Field(ge=0, le=1.01)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClipSettings(_Settings):
    """How frames are sampled; see :class:`safelens.video.ClipOptions`."""

    min_frames: int = 2
    max_frames: int = 20
    max_fps: float = 1.0
    max_side: int = 448
    # Left out where it changes nothing: what was kept on disk before it existed stays of the same settings.
    keyframe_shift_s: float = Field(default=0.0, exclude_if=lambda shift: shift == 0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        ClipOptions(**self.model_dump())
        return self

    def with_keyframes(self, shift_s: float | None) -> Self:
        """The same with another `keyframe_shift_s`; None leaves it as it is.

        Raises:
            ValueError: it is out of range.
        """
        if shift_s is None:
            return self
        return type(self).model_validate(self.model_dump() | {"keyframe_shift_s": shift_s})


class ScreenSettings(_Settings):
    """S1. Paths are relative to the bundle; what is no path in it is a model hub id."""

    model: Part
    """The embedder."""
    frame_pixels: int = Field(default=448 * 448, ge=1)
    """Pixels of a frame as the embedder sees it."""
    probe: Part | None = None
    """The probe's directory; None scores the label answers instead."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Divides the probe's logits; found by calibration."""
    domain: Part | None = None
    """The domain guard's file."""


class DeliberateSettings(_Settings):
    """S2."""

    captioner: Part
    """Florence-2."""
    model: Part | None = None
    """The reasoner; None continues the embedder's cache."""
    adapter: Part | None = None
    """LoRA adapter of the reasoner, switched on after the question."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Budget for description and explanation."""
    max_caption_tokens: int = Field(default=96, ge=1)
    """Budget for one caption."""


class PruneSettings(_Settings):
    """How a video's cache is thinned; see :mod:`safelens.safewatch.relevance`."""

    keep: float = Field(gt=0, le=1)
    """Share of the video's tokens that stay."""
    layer: int | None = Field(default=None, ge=0)
    """At which relevance is measured; None for the middle one."""


class BundleSettings(_Settings):
    """What ``bundle.yaml`` holds."""

    format: Literal["safelens.bundle/1"] = "safelens.bundle/1"
    name: str
    version: str
    knows: str | None = None
    """What the bundle is limited to, printed with every verdict; None for no special limit."""
    layout: Literal["policy_first", "video_first"] = "policy_first"
    policy_encoding: Literal["sequential", "parallel"] = "sequential"
    """The policy as one text, or each category read alone."""
    prune: PruneSettings | None = None
    """None keeps all of the video's tokens; only for a parallel policy."""
    policy: Part = "policy.yaml"
    other_policies: bool = False
    """Whether the models were trained to judge by policies that they have not seen. Others are refused
    otherwise: a model that learned one policy by heart calls safe what breaks another."""
    tau: Tau = 0.9
    """Confidence at or above which S1's answer stands; above 1, all goes to S2."""
    taus: dict[str, Tau] = {}
    """In place of `tau` where S1's answer is that class (category id or "safe")."""
    calibration: Part | None = None
    """The file with the evidence for temperature and tau."""
    outside_domain: Literal["escalate", "refuse"] = "escalate"
    """What happens to a clip that the domain guard does not know."""
    clip: ClipSettings = ClipSettings()
    screen: ScreenSettings
    deliberate: DeliberateSettings
    files: dict[str, str]
    """SHA-256 of every other file."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.prune is not None and self.policy_encoding != "parallel":
            raise ValueError("prune is only for policy_encoding: parallel")
        return self

    @property
    def thresholds(self) -> Thresholds:
        """`tau` and `taus`."""
        return Thresholds(self.tau, self.taus)

    def holds(self, part: str) -> bool:
        """Whether a part is one of the files, or a folder of them."""
        return any(name == part or name.startswith(f"{part}/") for name in self.files)


class Bundle:
    """A verified bundle.

    Attributes:
        folder: where it lies.
        settings: its ``bundle.yaml``.
        policy: its policy.
        sha256: digest of ``bundle.yaml``, which holds the digests of all else.
    """

    def __init__(self, folder: Path, settings: BundleSettings, policy: Policy, sha256: str) -> None:
        self.folder = folder
        self.settings = settings
        self.policy = policy
        self.sha256 = sha256

    @classmethod
    def load(cls, source: str | Path = "tiny") -> Bundle:
        """Find a bundle and check every file.

        Args:
            source: the name of a bundle in the package, a directory, or a model hub id.

        Raises:
            BundleError: not found, damaged, or its parts do not fit together.
        """
        folder = _find(source)
        try:
            text = (folder / CONFIG).read_bytes()
            settings = BundleSettings.model_validate(yaml.safe_load(text))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()
            )
            raise BundleError(f"{folder / CONFIG}: not a bundle's settings: {problems}") from error
        except (OSError, yaml.YAMLError, RecursionError) as error:
            raise BundleError(f"{folder / CONFIG}: not a bundle's settings: {error}") from error
        _verify(folder, settings)
        try:
            policy = Policy.load(folder / settings.policy)
        except (OSError, PolicyError) as error:
            raise BundleError(f"bundle {settings.name}: {error}") from error
        bundle = cls(folder, settings, policy, hashlib.sha256(text).hexdigest())
        bundle._check_classes(policy)
        return bundle

    def check_policy(self, policy: Policy) -> None:
        """Refuse a policy that is not the bundle's own by its classes, unless the bundle may judge by others.

        Raises:
            BundleError: with both lists.
        """
        if not self.settings.other_policies:
            self._check_classes(policy)

    def _check_classes(self, policy: Policy) -> None:
        """Raise BundleError unless a policy's categories are the probe's classes, each with its own tau among them.

        Their order counts where the policy is read as one text.
        """
        unknown = sorted(self.settings.taus.keys() - set(policy.labels))
        if unknown:
            raise BundleError(
                f"bundle {self.settings.name!r} has a tau for {', '.join(unknown)}, but the classes of "
                f"policy {policy.id!r} are {', '.join(policy.labels)}"
            )
        if self.settings.screen.probe is None:
            return
        path = self.folder / self.settings.screen.probe / "probe.json"
        try:
            classes = tuple(json.loads(path.read_text())["labels"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: no probe configuration: {error}") from error
        parallel = self.settings.policy_encoding == "parallel"
        if classes != policy.labels and not (parallel and set(classes) == set(policy.labels)):
            raise BundleError(
                f"policy {policy.id!r} does not match the probe of bundle {self.settings.name!r}: "
                f"the policy's classes are {', '.join(policy.labels)}; the probe's are "
                f"{', '.join(classes)}. Use a policy with these ids{'' if parallel else ' in this order'}, a bundle "
                "that says other_policies, or --model for a model without a probe"
            )

    def path(self, part: str) -> str:
        """A part's place: a path in the bundle, or a hub id as it stands."""
        return str(self.folder / part) if self.settings.holds(part) else part


def write_bundle(folder: Path, settings: dict[str, Any]) -> str:
    """Write ``bundle.yaml`` with the digests of all files that lie in ``folder``.

    Args:
        folder: holds every part.
        settings: fields of :class:`BundleSettings` without ``files``.

    Returns:
        The bundle's digest.

    Raises:
        BundleError: the result does not load.
    """
    settings = settings | {
        "format": FORMAT,
        "files": {n: _digest(p) for n, p in _files(folder).items()},
    }
    (folder / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return Bundle.load(folder).sha256


def packaged_bundles() -> dict[str, Path]:
    """Bundles that the package carries, by name."""
    root = Path(__file__).parent / "bundles"
    return {p.parent.name: p.parent for p in sorted(root.glob(f"*/{CONFIG}"))}


def _find(source: str | Path) -> Path:
    packaged = packaged_bundles()
    if str(source) in packaged:
        return packaged[str(source)]
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise BundleError(f"{folder}: no {CONFIG} in it; expected a bundle's directory")
        return folder
    known = ", ".join(packaged) or "none"
    if folder.is_absolute() or str(source).startswith(("./", "../", "~")) or "/" not in str(source):
        raise BundleError(f"bundle {source}: no such directory; bundles in the package: {known}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source)))
    except Exception as error:
        raise BundleError(
            f"bundle {source}: no such directory, and the model hub could not serve it "
            f"({type(error).__name__}); check name and network, or use a bundle of the package: {known}"
        ) from error


def _files(folder: Path) -> dict[str, Path]:
    """Every file that counts, by its path in the bundle: all but settings and what a hub adds."""
    names = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: path
        for name, path in names.items()
        if name != CONFIG and not name.startswith(".") and "__pycache__" not in path.parts
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: Path, settings: BundleSettings) -> None:
    """Refuse a bundle whose files are not exactly those of its settings, or that lacks a part.

    Raises:
        BundleError: names every file that is wrong.
    """
    found, problems = _files(folder), []
    for name, expected in settings.files.items():
        if name not in found:
            problems.append(f"{name} is missing")
        elif (digest := _digest(found[name])) != expected:
            problems.append(f"{name} has SHA-256 {digest[:12]}..., expected {expected[:12]}...")
    problems += [f"{name} is not listed" for name in found if name not in settings.files]
    screen, deliberate = settings.screen, settings.deliberate
    for part in (screen.model, deliberate.captioner, deliberate.model, deliberate.adapter):
        if part is not None and part.count("/") != 1 and not settings.holds(part):
            problems.append(f"{part} is missing (and is no model hub id)")
    for part in (settings.policy, screen.probe, screen.domain, settings.calibration):
        if part is not None and not settings.holds(part):
            problems.append(f"{part} is missing")
    if problems:
        listed = "; ".join(dict.fromkeys(problems))
        raise BundleError(f"bundle {folder} is damaged: {listed}. Install or download it again")
