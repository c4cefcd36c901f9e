"""The file that names the systems to be compared: its form, its errors, and what is made of it.

Knows the kinds of systems and their settings. Whatever can be known to be wrong is found here, before a
model is loaded or a request is paid for.

    systems:
      tiny:   {kind: safelens, bundle: tiny}
      watch:  {kind: safewatch, model: Qwen/Qwen3-VL-2B-Instruct, prune: 0.1}
      plain:  {kind: vlm, model: Qwen/Qwen3-VL-2B-Instruct, prompt: safelens}
      remote: {kind: openai, base_url: "http://localhost:8000/v1", model: name, prompt: safewatch}
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from safelens.bundle import ClipSettings, packaged_bundles
from safelens.bundle_parts import is_hub_id
from safelens.chat_video import Frames
from safelens.endpoint import Endpoint
from safelens.evaluate.endpoint_system import EndpointSystem
from safelens.evaluate.endpoints import Settings, open_client, read_document, said
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.evaluate.safewatch_system import SafeWatchSystem
from safelens.evaluate.styles import StyleName
from safelens.evaluate.system import System, SystemsError
from safelens.evaluate.vlm_system import VlmSystem
from safelens.policy import Policy
from safelens.yaml_lines import Document

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class SafeLensSettings(Settings):
    """A bundle: answers of its two stages on every video."""

    kind: Literal["safelens"]
    bundle: str
    """Name of a packaged bundle, directory or hub id."""
    prune: float | None = Field(default=None, gt=0, le=1)
    """Share of a video's tokens that stay, in place of the bundle's; for one that reads categories alone."""


class SafeWatchSettings(Settings):
    """A vision-language model, run here as SafeWatch reads: categories alone, videos thinned."""

    kind: Literal["safewatch"]
    model: str
    """Directory or hub id."""
    captioner: str | None = None
    """Florence-2's directory or hub id; None deliberates without captions."""
    prune: float | None = Field(default=0.1, gt=0, le=1)
    """Share of a video's tokens that stay; null keeps all."""


class VlmSettings(Settings):
    """A vision-language model, run here."""

    kind: Literal["vlm"]
    model: str
    """Directory or hub id."""
    prompt: StyleName
    clip: ClipSettings = ClipSettings()
    frame_pixels: int = Field(default=448 * 448, ge=1)
    """Pixels of a frame as the model sees it."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Budget of an answer."""


class EndpointSettings(Endpoint):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["openai"]
    prompt: StyleName
    frames: Frames = "images"
    """How frames are sent; "video" is for video models in vLLM."""
    clip: ClipSettings = ClipSettings()


AnySettings = SafeLensSettings | SafeWatchSettings | VlmSettings | EndpointSettings
_KINDS: dict[str, type[AnySettings]] = {
    "safelens": SafeLensSettings,
    "safewatch": SafeWatchSettings,
    "vlm": VlmSettings,
    "openai": EndpointSettings,
}


@dataclass(frozen=True)
class SystemsFile:
    """What a file of systems says.

    Attributes:
        path: of the file; directories in it are relative to its folder.
        settings: of each system, by its name, in the file's order.
    """

    path: Path
    settings: dict[str, AnySettings]
    _document: Document = field(repr=False)

    def where(self, name: str) -> str:
        """A system's place, for messages."""
        return f"{self.path}:{self._document.line(('systems', name))}: system {name!r}"

    def only(self, names: list[str]) -> SystemsFile:
        """Those of the systems that are named; all, where none is.

        Raises:
            SystemsError: a name is not in the file.
        """
        if unknown := [name for name in names if name not in self.settings]:
            known = ", ".join(self.settings)
            raise SystemsError(f"{self.path}: no system {unknown[0]!r}; it names {known}")
        chosen = {n: s for n, s in self.settings.items() if not names or n in names}
        return SystemsFile(self.path, chosen, self._document)


def read_systems(path: str | os.PathLike[str]) -> SystemsFile:
    """Read a file of systems.

    Raises:
        SystemsError: it cannot be read or says something that is not understood; every problem is named,
            with its line.
    """
    file = Path(path)
    document = read_document(file)
    problems = [(line or 1, message) for line, message in document.problems]
    settings: dict[str, AnySettings] = {}
    if document.readable and not problems:
        found = document.data.get("systems") if isinstance(document.data, dict) else None
        if not isinstance(found, dict) or not found:
            problems.append((1, "expected 'systems:' with a mapping of names to systems"))
            found = {}
        else:
            problems += [
                (document.line((key,)), f"unknown key {key!r}; expected only 'systems'")
                for key in document.data
                if key != "systems"
            ]
        for name, value in found.items():
            one, wrong = _settings(name, value)
            if one is not None:
                settings[name] = one
            at = ("systems", name)
            problems += [
                (document.line((*at, *place)), f"system {name!r}: {text}") for place, text in wrong
            ]
    if problems:
        raise SystemsError("\n".join(f"{file}:{line}: {text}" for line, text in sorted(problems)))
    return SystemsFile(file, settings, document)


_Problems = list[tuple[tuple[str | int, ...], str]]


def _settings(name: str, value: Any) -> tuple[AnySettings | None, _Problems]:
    """The settings of one system, or what is wrong and where."""
    if not _NAME.fullmatch(name):
        return None, [((), "a name has letters, digits, '_', '-' and '.', at most 64; rename it")]
    kinds = ", ".join(_KINDS)
    if not isinstance(value, dict) or "kind" not in value:
        return None, [((), f"expected a mapping with a kind, one of {kinds}")]
    if not isinstance(value["kind"], str) or value["kind"] not in _KINDS:
        return None, [(("kind",), f"unknown kind {value['kind']!r}; expected one of {kinds}")]
    kind = _KINDS[value["kind"]]
    try:
        return kind.model_validate(value), []
    except ValidationError as error:
        return None, [(e["loc"], said(kind, e)) for e in error.errors()]


def build_systems(
    file: SystemsFile, policy: Policy, *, keep_policies: bool = True
) -> Mapping[str, System]:
    """Make every system ready to be entered; loads no model and asks no endpoint.

    Args:
        file: what was read.
        policy: by whose categories all are judged.
        keep_policies: whether a bundle keeps its own policy if that has the same categories. If not, it is judged by
            the given one, where it was made to judge by others.

    Raises:
        SystemsError: a directory, key or part is missing, or a bundle is damaged or has other categories;
            names every system that cannot be used.
    """
    systems: dict[str, System] = {}
    problems: list[str] = []
    for name, settings in file.settings.items():
        try:
            systems[name] = _build(
                file.where(name), file.path.parent, settings, policy, keep_policies
            )
        except SystemsError as error:
            problems.append(str(error))
    if problems:
        raise SystemsError("\n".join(problems))
    return systems


def _build(
    where: str, folder: Path, settings: AnySettings, policy: Policy, keep_policies: bool
) -> System:
    if isinstance(settings, SafeLensSettings):
        bundle = settings.bundle
        if bundle not in packaged_bundles():
            bundle = _directory(where, "bundle", bundle, folder)
        system = SafeLensSystem(
            where, bundle, None if keep_policies else policy, prune=settings.prune
        )
        if set(system.policy.labels) != set(policy.labels):
            try:
                return SafeLensSystem(where, bundle, policy, prune=settings.prune)
            except SystemsError as error:
                raise SystemsError(
                    f"{where}: its policy {system.policy.id!r} has {', '.join(system.policy.labels)}; the "
                    f"data are read by policy {policy.id!r}: {', '.join(policy.labels)}, and it judges by no other "
                    "categories than its own. Name one with --policy that suits both"
                ) from error
        return system
    if isinstance(settings, SafeWatchSettings):
        captioner = settings.captioner
        if captioner is not None:
            captioner = _directory(where, "captioner", captioner, folder)
        return SafeWatchSystem(
            where,
            _directory(where, "model", settings.model, folder),
            policy,
            captioner=captioner,
            prune=settings.prune,
        )
    if isinstance(settings, VlmSettings):
        return VlmSystem(
            where,
            _directory(where, "model", settings.model, folder),
            settings.prompt,
            policy,
            clip=settings.clip,
            frame_pixels=settings.frame_pixels,
            max_new_tokens=settings.max_new_tokens,
        )
    return _endpoint(where, settings, policy)


def _endpoint(where: str, settings: EndpointSettings, policy: Policy) -> System:
    client = open_client(where, settings)  # without a cache: answers are kept whatever gave them
    return EndpointSystem(
        client,
        settings.prompt,
        policy,
        clip=settings.clip,
        frames=settings.frames,
        max_new_tokens=settings.max_new_tokens,
        concurrency=settings.concurrency,
    )


def _directory(where: str, key: str, value: str, folder: Path) -> str:
    """A directory's absolute path, relative ones to the file's folder; what is none and may be a hub id stays as it is.

    Raises:
        SystemsError: it is no directory and can be no hub id.
    """
    place = folder / Path(value).expanduser()
    if place.is_dir():
        return str(place.absolute())  # a cluster's processes have other folders to be relative to
    if not is_hub_id(value):
        raise SystemsError(
            f"{where}: {key}: no directory {place}, and {value!r} is no hub id (OWNER/NAME); correct it"
        )
    return value
