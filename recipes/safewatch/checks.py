"""What must be there before hours are spent: data, models, endpoint, disk. Finds all problems at once.

Knows how each is looked at without running a model. What cannot be looked at is said to be not checked,
never to be well.
"""

from __future__ import annotations

import math
import os
import shutil
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.safewatch.config import Config
from safelens.bundle_parts import model_config
from safelens.data.read import read_dataset
from safelens.data.records import Record
from safelens.policy import Policy, PolicyError


@dataclass
class Found:
    """What was looked at.

    Attributes:
        lines: what is there, in words.
        unchecked: what could not be looked at, and why.
        problems: what is wrong, and what to do.
        policy: as loaded, or None.
        train: training samples, or None where they cannot be read.
        validation: validation samples, or None.
        model: configuration of the vision-language model, or None.
        captioner: configuration of Florence-2, or None.
    """

    lines: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    policy: Policy | None = None
    train: int | None = None
    validation: int | None = None
    model: Any = None
    captioner: Any = None


def look(config: Config) -> Found:
    """Look at everything but the disk, whose need is known only when the costs are."""
    found = Found()
    try:
        found.policy = Policy.load(config.policy)
    except PolicyError as error:
        found.problems.append(str(error))
    if found.policy is not None:
        _data(config, found.policy, found)
    found.model = _model(config.model, "vision-language model", "qwen3_vl", found)
    found.captioner = _model(config.captioner, "Florence-2", "florence2", found)
    if config.bundle.card is not None and not Path(config.bundle.card).is_file():
        found.problems.append(f"{config.bundle.card}: no such file (bundle.card)")
    _endpoint(config, found)
    return found


def disk(root: str, needed: float, found: Found) -> None:
    """Compare what the stages write with what is free where they write it."""
    place = Path(root).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"disk: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free at {root}"
    if needed > free:
        found.problems.append(f"{text}; make room or set root elsewhere")
    else:
        found.lines.append(text)


def _data(config: Config, policy: Policy, found: Found) -> None:
    train = _records(config.data.train, config, policy, found)
    if train is None:
        if config.data.val is not None:
            _records([config.data.val], config, policy, found)
        return
    if config.data.val is None:
        part = [r for r in train if r.split == "val"]
        train = [r for r in train if r.split in ("train", None)]
        _count("val (a part of the training data)", part, policy, found)
    else:
        held = _records([config.data.val], config, policy, found)
        train = [r for r in train if r.split in ("train", None)]
        if held is None:
            _count("train", train, policy, found)
            found.train = len(train)
            return
        part = held
        _count("val", part, policy, found)
    _count("train", train, policy, found)
    found.train, found.validation = len(train), len(part)
    if not train:
        found.problems.append("data.train holds no record of the part train")
    rate, fresh = config.probe.false_refusal_rate, int(len(train) * config.assume.kept) // 5
    if (wanted := math.ceil(1 / rate) - 1) > fresh:
        found.problems.append(
            f"the domain guard is set on a fifth of what is kept, {fresh} clips, and a "
            f"false_refusal_rate of {rate} needs {wanted}: raise probe.false_refusal_rate"
        )
    if missing := sorted({r.label for r in train} - {r.label for r in part}):
        found.problems.append(
            f"no validation record of {', '.join(missing)}: influence on a class without one is undefined"
        )


def _records(paths: list[str], config: Config, policy: Policy, found: Found) -> list[Record] | None:
    try:
        read = read_dataset(paths, policy, videos_root=config.data.videos_root)
    except ValueError as error:
        found.problems.append(str(error))
        return None
    if read.left_out:
        found.lines.append(
            f"{', '.join(paths)}: {read.left_out} of {read.entries} entries left out; "
            "`safelens data check` says why"
        )
    absent = [r.video for r in read.records if not os.path.exists(r.video)]
    if absent:
        found.problems.append(
            f"{', '.join(paths)}: {len(absent)} of {len(read.records)} videos are not there, such as "
            f"{absent[0]}; set data.videos_root, or leave their records out"
        )
    return [r for r in read.records if not r.undecided]


def _count(name: str, records: list[Record], policy: Policy, found: Found) -> None:
    counts = Counter(record.label for record in records)
    listed = ", ".join(f"{label} {counts[label]}" for label in policy.labels)
    found.lines.append(f"{name}: {len(records)} records: {listed}")


def _model(source: str, kind: Any, model_type: str, found: Found) -> Any:
    config, note, problem = model_config(source, kind)
    if problem:
        found.problems.append(problem)
    elif note:
        found.unchecked.append(note)
    elif config.model_type != model_type:
        found.problems.append(
            f"{source}: holds a model of type {config.model_type!r}; expected {model_type!r}"
        )
        return None
    else:
        found.lines.append(f"{source}: a {model_type} configuration")
    return config


def _endpoint(config: Config, found: Found) -> None:
    """Whether the endpoint of the traces answers at all; nothing is asked that costs."""
    t = config.traces
    if t.generator != "openai":
        return
    key = os.environ.get(t.api_key_env, "") if t.api_key_env else ""
    if t.api_key_env and not key:
        found.problems.append(f"traces.api_key_env: {t.api_key_env} is not set")
        return
    url = f"{(t.base_url or '').rstrip('/')}/models"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=10
        ) as answer:
            text = answer.read(1_000_000).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            found.problems.append(f"{url}: refuses with {error.code}; set traces.api_key_env")
        else:
            found.unchecked.append(
                f"{url}: answers, but with {error.code}: model {t.model} not checked"
            )
        return
    except (OSError, ValueError) as error:
        found.problems.append(f"{url}: no answer ({error}); start the endpoint or correct base_url")
        return
    if f'"{t.model}"' in text:
        found.lines.append(f"{url}: answers, and lists {t.model}")
    else:
        found.unchecked.append(f"{url}: answers, but does not list {t.model}: model not checked")
