"""What a bundle is made of, and how its parts must be and fit together.

Knows directories, hub ids and configurations. Loads no model, and writes nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safelens.policy import Policy

MODEL, CAPTIONER, REASONER, ADAPTER = "model", "captioner", "reasoner", "deliberate"
PROBE, DOMAIN = "probe", "domain.safetensors"
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
        return _checked(source, config, kind)
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
    return _checked(source, config, kind)


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


def _checked(source: str, config: Any, kind: Kind) -> tuple[Any, None, str | None]:
    """As `model_config`, of a configuration that has been read."""
    from safelens.families import refusal

    if kind == "vision-language model":
        reason = refusal(config)
    else:
        reason = f"holds a model of type {config.model_type!r}; expected a Florence-2"
        reason = None if config.model_type == "florence2" else reason
    return (None, None, f"{source}: {reason}") if reason else (config, None, None)


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
    from safelens.domain_features import domain_width

    if parts.domain is None:
        return []
    try:
        features = DomainGuard.load(parts.domain).width
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
