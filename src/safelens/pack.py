"""Packs trained parts into a bundle: all is checked first, then a folder appears whole or not at all.

Knows files and settings. Runs no model, and measures nothing: the card that it writes says what was
packed, by digest, and that no figures have been measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safelens.bundle import CONFIG, BundleError, BundleSettings, write_bundle
from safelens.bundle_parts import (
    ADAPTER,
    CAPTIONER,
    DOMAIN,
    MODEL,
    PROBE,
    REASONER,
    Parts,
    check_parts,
)

POLICY, CARD = "policy.yaml", "card.md"


@dataclass(frozen=True)
class Packed:
    """What came of it.

    Attributes:
        sha256: the bundle's digest, as `Bundle.load` gives it.
        notes: what could not be checked, and why.
    """

    sha256: str
    notes: tuple[str, ...]


def pack(
    parts: Parts, out: Path, settings: Mapping[str, Any], *, replace_bundle: bool = False
) -> Packed:
    """Check the parts, copy them beside ``out``, and move the finished bundle into place.

    Args:
        parts: what to pack.
        out: the bundle's directory.
        settings: fields of :class:`BundleSettings` without ``files`` and without the parts' places;
            ``name`` and ``version`` are required.
        replace_bundle: take the place of a bundle that lies there.

    Raises:
        BundleError: all that is wrong, found before anything is written; or no room on the disk.
    """
    parts = _local(parts)
    notes, problems = check_parts(parts)
    problems += _destination(out, replace_bundle)
    full = _settings(parts, settings)
    try:
        BundleSettings.model_validate(full | {"files": {}})
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if problems:
        raise BundleError("nothing was packed: " + "\n  ".join(["", *problems]).lstrip(" "))
    with beside(out, map(Path, parts.named().values())) as folder:
        for place, source in parts.named().items():
            if place == DOMAIN:
                shutil.copy(source, folder / DOMAIN)
            elif Path(source).is_dir():
                shutil.copytree(source, folder / place, ignore=_left_behind)
        if (folder / ADAPTER).is_dir():
            _forget_base(folder / ADAPTER)
        (folder / POLICY).write_text(parts.policy.to_yaml(), encoding="utf-8")
        card = parts.card if parts.card is not None else _card(folder, parts, full)
        (folder / CARD).write_text(card, encoding="utf-8")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        digest = write_bundle(folder, full)
        into_place(folder, out)
    return Packed(digest, tuple(notes))


def _local(parts: Parts) -> Parts:
    """The parts with ``~`` expanded, so that every later look is at the same place."""

    def expanded(source: str | None) -> str | None:
        return None if source is None else os.path.expanduser(source)

    return replace(
        parts,
        model=os.path.expanduser(parts.model),
        captioner=os.path.expanduser(parts.captioner),
        reasoner=expanded(parts.reasoner),
        adapter=expanded(parts.adapter),
    )


def _destination(out: Path, replace_bundle: bool) -> list[str]:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        return [f"{out}: exists and is no directory; name another"]
    if out.exists() and not replace_bundle:
        return [f"{out}: exists; name another directory, or add --replace"]
    if out.exists() and not (out / CONFIG).is_file():
        return [f"{out}: exists and holds no {CONFIG}, so it is no bundle that could be replaced"]
    return []


def _settings(parts: Parts, given: Mapping[str, Any]) -> dict[str, Any]:
    """The bundle's settings with the places of its parts."""

    def place(name: str, source: str | None) -> dict[str, str]:
        if source is None:
            return {}
        return {
            "adapter" if name == ADAPTER else "model": name if Path(source).is_dir() else source
        }

    screen = {"model": MODEL if Path(parts.model).is_dir() else parts.model}
    screen |= given.get("screen", {})
    if parts.probe is not None:
        screen["probe"] = PROBE
    if parts.domain is not None:
        screen["domain"] = DOMAIN
    deliberate = {"captioner": CAPTIONER if Path(parts.captioner).is_dir() else parts.captioner}
    deliberate |= place(REASONER, parts.reasoner) | place(ADAPTER, parts.adapter)
    deliberate |= given.get("deliberate", {})
    order = ("name", "version", "knows", "layout", "policy", "tau", "outside_domain", "clip")
    whole = {"layout": "policy_first"} | dict(given) | {"policy": POLICY}
    settings = {name: whole[name] for name in order if whole.get(name) is not None}
    extra = {
        name: value for name, value in whole.items() if name not in (*order, "screen", "deliberate")
    }
    return settings | extra | {"screen": screen, "deliberate": deliberate}


@contextmanager
def beside(out: Path, sources: Iterable[Path]) -> Iterator[Path]:
    """A temporary folder on the disk of ``out``, with room for the sources; gone if writing fails.

    Raises:
        BundleError: no room, or what could not be read or written.
    """
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        needed = sum(
            file.stat().st_size
            for source in sources
            for file in ([source] if source.is_file() else source.rglob("*"))
            if file.is_file()
        )
        free = shutil.disk_usage(out.absolute().parent).free
        if needed > free:
            raise BundleError(
                f"{out}: the parts take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make room"
            )
        folder = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    except OSError as error:
        raise BundleError(f"{out}: cannot be written: {error.strerror or error}") from error
    try:
        yield folder
    except (OSError, shutil.Error) as error:
        raise BundleError(f"{out}: the bundle could not be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def into_place(folder: Path, out: Path) -> None:
    """Rename, with whatever lay there moved aside until the new bundle stands."""
    old = folder.with_name(f"{folder.name}.old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _left_behind(folder: str, names: list[str]) -> set[str]:
    """Hidden files, which have no digest, and peft's README, which names the training machine's paths."""
    hidden = {name for name in names if name.startswith(".") or name == "__pycache__"}
    return hidden | ({"README.md"} if "adapter_config.json" in names else set())


def _forget_base(adapter: Path) -> None:
    """Null what peft notes of where the base model lay on the machine that trained it."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": None}
    path.write_text(json.dumps(config, indent=2))


def _card(folder: Path, parts: Parts, settings: Mapping[str, Any]) -> str:
    """A minimal card: what is in the bundle, by digest, and what is not known of it."""
    rows = []
    for place, source in parts.named().items():
        inside = folder / place
        if inside.exists():
            rows.append(f"| {place} | SHA-256 `{_digest(inside)}` |")
        else:
            rows.append(f"| {place} | model hub: `{source}`, not in the bundle |")
    policy = parts.policy
    lines = [
        f"# {settings['name']} {settings['version']}",
        "",
        "**No figures have been measured.** This card was generated when the bundle was packed; it says",
        "what is inside and nothing of how well it works. What it was trained on is not recorded here.",
        "",
        f"Limited to: {settings.get('knows') or 'not stated'}.",
        "",
        f"Policy: {policy.name} (`{policy.id}`, version {policy.version}, SHA-256 `{policy.sha256}`).",
        f"S1's answer stands from a confidence of {settings.get('tau', 0.9)} on"
        + (
            "."
            if parts.domain is not None
            else "; there is no domain guard, so it stands on any video."
        ),
        "",
        "| part | packed from |",
        "|---|---|",
        *rows,
        "",
        "A directory's digest is that of its files' digests and names, sorted by name.",
    ]
    return "\n".join(lines) + "\n"


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the lines `digest  name` of a folder's files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    lines = [f"{_digest(p)}  {p.relative_to(path).as_posix()}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
