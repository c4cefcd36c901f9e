"""Packs trained parts into a bundle: all is checked first, then a folder appears whole or not at all.

Knows directories, hub ids and how parts must fit together. Runs no model, and measures nothing: the card
that it writes says what was packed, by digest, and that no figures have been measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from safelens.bundle import CONFIG, BundleError, BundleSettings, write_bundle
from safelens.policy import Policy

MODEL, CAPTIONER, REASONER, ADAPTER = "model", "captioner", "reasoner", "deliberate"
PROBE, DOMAIN, POLICY, CARD = "probe", "domain.safetensors", "policy.yaml", "card.md"
Kind = Literal["vision-language model", "Florence-2"]


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of.

    Attributes:
        model: the embedder: a directory, which is copied, or a hub id, which is referred to.
        captioner: Florence-2, likewise.
        policy: gives the probe's classes.
        probe: directory of the probe; None scores the label answers.
        domain: file of the domain guard.
        reasoner: S2's own model, a directory or a hub id; None continues the embedder's cache.
        adapter: LoRA adapter of the reasoner, or of the embedder where there is no reasoner.
        card: text of the card; None generates one.
    """

    model: str
    captioner: str
    policy: Policy
    probe: Path | None = None
    domain: Path | None = None
    reasoner: str | None = None
    adapter: str | None = None
    card: str | None = None

    def named(self) -> dict[str, str]:
        """The parts that have a place of their own in the bundle: that place to where they are."""
        places = {
            MODEL: self.model,
            CAPTIONER: self.captioner,
            REASONER: self.reasoner,
            ADAPTER: self.adapter,
            PROBE: self.probe,
            DOMAIN: self.domain,
        }
        return {place: str(source) for place, source in places.items() if source is not None}


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
    with _beside(out, parts) as folder:
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
        _into_place(folder, out)
    return Packed(digest, tuple(notes))


def check_parts(parts: Parts) -> tuple[list[str], list[str]]:
    """What could not be checked, and all that is wrong with the parts or does not fit."""
    notes: list[str] = []
    problems: list[str] = []

    def config_of(source: str, kind: Kind) -> Any:
        config, note, problem = model_config(source, kind)
        notes.extend([note] if note else [])
        problems.extend([problem] if problem else [])
        return config

    model = config_of(parts.model, "vision-language model")
    config_of(parts.captioner, "Florence-2")
    base, base_source = model, parts.model
    if parts.reasoner is not None:
        base = config_of(parts.reasoner, "vision-language model")
        base_source = parts.reasoner
    width = None if model is None else int(model.get_text_config().hidden_size)
    problems += _probe_problems(parts, width) + _guard_problems(parts, width)
    if parts.adapter is not None:
        problems += _adapter_problems(parts.adapter, base, base_source)
    return notes, problems


def model_config(source: str, kind: Kind) -> tuple[Any, str | None, str | None]:
    """A model's configuration, without its weights.

    Args:
        source: a directory, or a hub id; of a hub id the local cache is asked first, then the hub.
        kind: what it must be.

    Returns:
        The configuration, or None; what could not be checked, or None; what is wrong, or None.
    """
    from transformers import AutoConfig

    folder = Path(source)
    if folder.is_dir():
        if missing := missing_files(folder):
            return None, None, f"{source}: not a model's directory: it lacks {', '.join(missing)}"
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            return None, None, f"{folder / 'config.json'}: not a model's configuration: {reason}"
        return (
            (config, None, None)
            if _is(config, kind)
            else (None, None, _other(source, config, kind))
        )
    if not is_hub_id(source):
        return None, None, _absent(source)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError):
        config, problem, reached = _hub_config(source)
        if problem:
            return None, None, problem
        if not reached:
            return None, f"{source}: not checked: the hub cannot be reached", None
    return (config, None, None) if _is(config, kind) else (None, None, _other(source, config, kind))


def missing_files(folder: Path) -> list[str]:
    """What a directory lacks to be a model with its processor, as `save_pretrained` writes both."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            shards = {f"a readable {index.name}"}
        missing += sorted(name for name in shards if not (folder / name).is_file())
    elif not (folder / "model.safetensors").is_file():
        missing.append("model.safetensors")
    for names in (
        ("tokenizer.json", "vocab.json"),
        ("processor_config.json", "preprocessor_config.json"),
    ):
        if not any((folder / name).is_file() for name in names):
            missing.append(names[0])
    return missing


def is_hub_id(source: str) -> bool:
    """Whether a name can be a hub id, and not a mistyped path: its first folder must not exist."""
    found = re.fullmatch(r"(\w[\w.-]*)/(\w[\w.-]*)", source, re.ASCII)
    return found is not None and not Path(found[1]).is_dir()


def _absent(source: str) -> str:
    first = Path(source).parts[0] if "/" in source else ""
    if first not in ("", "/", ".", "..") and Path(first).is_dir():
        return (
            f"{source}: no such directory (no hub id either, as there is a folder {first!r} here)"
        )
    return f"{source}: no such directory, and not a hub id such as owner/name"


def _hub_config(name: str) -> tuple[Any, str | None, bool]:
    """The configuration on the hub, or what is wrong with the name, and whether the hub answered."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from transformers import AutoConfig

    try:
        HfApi().model_info(name, timeout=10)
        return AutoConfig.from_pretrained(name), None, True
    except GatedRepoError:
        return None, f"{name}: the hub has it behind a form; accept it and log in", True
    except RepositoryNotFoundError:
        return None, f"{name}: no such directory, and the hub has no model of this name", True
    except Exception:
        return None, None, False


def _is(config: Any, kind: Kind) -> bool:
    florence = config.model_type == "florence2"
    return florence if kind == "Florence-2" else not florence and hasattr(config, "vision_config")


def _other(source: str, config: Any, kind: Kind) -> str:
    return f"{source}: holds a model of type {config.model_type!r}; expected a {kind}"


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


def _probe_problems(parts: Parts, width: int | None) -> list[str]:
    from safelens.probe import RollingAttentionProbe

    if parts.probe is None:
        return []
    try:
        config = RollingAttentionProbe.load(parts.probe).config
    except (OSError, ValueError) as error:
        return [str(error)]
    found = []
    if config.labels != parts.policy.labels:
        found.append(
            f"{parts.probe}: its classes are {', '.join(config.labels)}; the policy "
            f"{parts.policy.id!r} has {', '.join(parts.policy.labels)}; train the probe with it"
        )
    if width is not None and config.input_dim != width:
        found.append(
            f"{parts.probe}: reads states of width {config.input_dim}, but {parts.model} gives {width}; "
            "use the model that the probe was trained on"
        )
    return found


def _guard_problems(parts: Parts, width: int | None) -> list[str]:
    from safelens.domain import DomainGuard
    from safelens.screen import domain_width

    if parts.domain is None:
        return []
    try:
        features = len(DomainGuard.load(parts.domain).mean)
    except (OSError, ValueError) as error:
        text = str(error)
        return [text if str(parts.domain) in text else f"{parts.domain}: {text}"]
    if width is not None and features != domain_width(width):
        return [
            f"{parts.domain}: reads {features} features, but {parts.model} gives {domain_width(width)}; "
            "use the model that the domain guard was fitted on"
        ]
    return []


def _adapter_problems(adapter: str, base: Any, base_source: str) -> list[str]:
    """Whether every weight of a LoRA adapter has the shape that rank and base model ask for."""
    from safetensors import SafetensorError, safe_open

    folder = Path(adapter)
    if not folder.is_dir():
        if is_hub_id(adapter):
            return []
        return [_absent(adapter)]
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank = int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / 'adapter_config.json'}: not a LoRA adapter's configuration: {error}"]
    weights = folder / "adapter_model.safetensors"
    try:
        with safe_open(str(weights), framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        return [f"{weights}: cannot be read ({error}); expected an adapter saved by peft"]
    ranks = {
        shape[0 if ".lora_A" in key else 1] for key, shape in shapes.items() if len(shape) == 2
    }
    if not config.get("rank_pattern") and ranks - {rank}:
        return [
            f"{weights}: of rank {', '.join(map(str, sorted(ranks)))}, but adapter_config.json says {rank}"
        ]
    if base is None:
        return []
    expected = _linear_shapes(base)
    for key, shape in sorted(shapes.items()):
        layer, _, side = key.removeprefix("base_model.model.").partition(".lora_")
        out_in = expected.get(f"{layer}.weight")
        if out_in is None or len(shape) != 2:
            return [
                f"{weights}: {layer} is no layer of {base_source}; it was made for another model"
            ]
        wide = shape[1] if side.startswith("A") else shape[0]
        wanted = out_in[1] if side.startswith("A") else out_in[0]
        if wide != wanted:
            return [
                f"{weights}: {layer} is adapted at width {wide}, but that of {base_source} is {wanted}; "
                "it was made for another model"
            ]
    return []


def _linear_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's matrices by name, from its configuration alone."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2}


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
def _beside(out: Path, parts: Parts) -> Iterator[Path]:
    """A temporary folder on the disk of ``out``, gone if packing fails."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        needed = sum(
            file.stat().st_size
            for source in map(Path, parts.named().values())
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


def _into_place(folder: Path, out: Path) -> None:
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
