"""The bundle: a directory with all that a verdict depends on, verified at load.

Knows the files of a bundle, their digests and that they fit together. Runs no model: it hands paths
and settings to whoever builds the parts.

    bundle.yaml   this file's settings, and the SHA-256 of every other file
    policy.yaml   the policy that the probe's classes come from
    model/        the vision-language model      probe/    the probe
    captioner/    Florence-2                     deliberate/  the LoRA adapter (or another model)
    domain.safetensors   the domain guard        card.md   what it was trained on, and its limits
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safelens.policy import Policy, PolicyError

CONFIG = "bundle.yaml"
FORMAT = "safelens.bundle/1"


class BundleError(Exception):
    """A bundle that must not be used; the message says which part and why."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClipSettings(_Settings):
    """How frames are sampled; see :class:`safelens.video.ClipOptions`."""

    min_frames: int = 2
    max_frames: int = 20
    max_fps: float = 1.0
    max_side: int = 448


class ScreenSettings(_Settings):
    """S1. Paths are relative to the bundle; what is no path in it is a model hub id."""

    model: str
    """The embedder."""
    frame_pixels: int = 448 * 448
    """Pixels of a frame as the embedder sees it."""
    probe: str | None = None
    """The probe's directory; None scores the label answers instead."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the probe's logits; found by calibration."""
    domain: str | None = None
    """The domain guard's file."""


class DeliberateSettings(_Settings):
    """S2."""

    captioner: str
    """Florence-2."""
    model: str | None = None
    """The reasoner; None continues the embedder's cache."""
    adapter: str | None = None
    """LoRA adapter of the reasoner, switched on after the question."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Budget for description and explanation."""
    max_caption_tokens: int = Field(default=96, ge=1)
    """Budget for one caption."""


class BundleSettings(_Settings):
    """What ``bundle.yaml`` holds."""

    format: Literal["safelens.bundle/1"] = "safelens.bundle/1"
    name: str
    version: str
    knows: str | None = None
    """What the bundle is limited to, printed with every verdict; None for no special limit."""
    layout: Literal["policy_first", "video_first"] = "policy_first"
    policy: str = "policy.yaml"
    tau: float = Field(default=0.9, ge=0, le=1.01)
    """Confidence at or above which S1's answer stands; above 1, all goes to S2."""
    outside_domain: Literal["escalate", "refuse"] = "escalate"
    """What happens to a clip that the domain guard does not know."""
    clip: ClipSettings = ClipSettings()
    screen: ScreenSettings
    deliberate: DeliberateSettings
    files: dict[str, str]
    """SHA-256 of every other file."""


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
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise BundleError(f"{folder / CONFIG}: not a bundle's settings: {error}") from error
        _verify(folder, settings.files)
        try:
            policy = Policy.load(folder / settings.policy)
        except (OSError, PolicyError) as error:
            raise BundleError(f"bundle {settings.name}: {error}") from error
        bundle = cls(folder, settings, policy, hashlib.sha256(text).hexdigest())
        bundle.check_policy(policy)
        return bundle

    def check_policy(self, policy: Policy) -> None:
        """Refuse a policy whose categories are not the probe's classes.

        Raises:
            BundleError: with both lists.
        """
        if self.settings.screen.probe is None:
            return
        path = self.folder / self.settings.screen.probe / "probe.json"
        try:
            classes = tuple(json.loads(path.read_text())["labels"])
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"{path}: no probe configuration: {error}") from error
        if classes != policy.labels:
            raise BundleError(
                f"policy {policy.id!r} does not match the probe of bundle {self.settings.name!r}: "
                f"the policy's classes are {', '.join(policy.labels)}; the probe's are "
                f"{', '.join(classes)}. Use a policy with these ids in this order, or --model for a "
                "model without a probe"
            )

    def path(self, part: str) -> str:
        """A part's place: a path in the bundle, or a hub id as it stands."""
        inside = self.folder / part
        return str(inside) if inside.exists() else part


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
    settings = settings | {"format": FORMAT, "files": {n: _digest(p) for n, p in _files(folder)}}
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


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != CONFIG]
    return [
        (p.relative_to(folder).as_posix(), p)
        for p in found
        if "__pycache__" not in p.parts and not p.relative_to(folder).parts[0].startswith(".")
    ]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: Path, files: dict[str, str]) -> None:
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := _digest(path)) != expected:
            problems.append(f"{name} has SHA-256 {found[:12]}..., expected {expected[:12]}...")
    problems += [f"{name} is not listed" for name, _ in _files(folder) if name not in files]
    if problems:
        raise BundleError(
            f"bundle {folder} is damaged: {'; '.join(problems)}. Install or download it again"
        )
