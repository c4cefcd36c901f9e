"""Records as files in the layouts of the public SafeWatch-Bench release.

Knows those layouts: `genai/C1..C6/<subcategory>_benchmark.json`, a list of {video_path, labels,
subcategories}, with `benign_benchmark.json` for safe videos; and raw SFT entries {id, video,
conversations}, whose answer has DESCRIPTION, GUARDRAIL, EXPLANATION in that order and category keys
such as "C1(Sexual Content)". Knows nothing of how records came about.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safelens.data.records import Record
from safelens.policy import Policy
from safelens.prompts import policy_prompt, question


def write_safewatch(
    out: str | os.PathLike[str], records: Sequence[Record], policy: Policy
) -> list[Path]:
    """Writes `safewatch/` beside the records' videos, replacing what an earlier run wrote.

    The benchmark holds the test part with true labels; `sft.jsonl` holds the train part with the
    labels as given. Video paths are relative to `safewatch/`.

    Args:
        out: the data set's folder.
        records: all records of the data set.
        policy: its categories are numbered C1, C2, ... in order.

    Returns:
        The files written.
    """
    root = Path(out) / "safewatch"
    numbers = {category.id: k for k, category in enumerate(policy.categories, start=1)}
    files: dict[Path, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record.split != "test":
            continue
        labels = record.labels if record.true_labels is None else record.true_labels
        files[_benchmark_file(root, record, labels, numbers)].append(
            {
                "video_path": f"../{record.video}",
                "labels": sorted(numbers[label] for label in labels),
                "subcategories": _subcategories(record) if labels else [],
            }
        )
    for stale in root.glob("genai/C*/*_benchmark.json"):
        if stale not in files:
            stale.unlink()
    for path, entries in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, indent=4) + "\n", "utf-8")

    sft = root / "sft.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    prompt = f"<video>\n{policy_prompt(policy)}\n{question(policy)}"
    train = [record for record in records if record.split == "train"]
    with open(sft, "w", encoding="utf-8") as file:
        for number, record in enumerate(train, start=1):
            entry = {
                "id": number,
                "video": f"../{record.video}",
                "conversations": [
                    {"from": "human", "value": prompt},
                    {"from": "gpt", "value": safewatch_answer(record, policy)},
                ],
            }
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return [*sorted(files), sft]


def safewatch_answer(record: Record, policy: Policy) -> str:
    """The answer of a raw SFT entry, for `record.labels`.

    A mislabelled record's true explanation would give the mistake away, so it gets a sentence that
    follows from the wrong labels alone.
    """
    flags = {
        f"C{k}({category.name})": category.id in record.labels
        for k, category in enumerate(policy.categories, start=1)
    }
    explanation = record.explanation
    if explanation is None or record.mislabelled:
        names = [policy.category(label).name for label in record.labels]
        explanation = (
            f"The video shows content under {' and '.join(names)}."
            if names
            else "The video shows nothing that the policy blocks."
        )
    return (
        f"DESCRIPTION: {record.description or ''}\n"
        f"GUARDRAIL: {json.dumps(flags, indent=4)}\n"
        f"EXPLANATION: {explanation}"
    )


def _subcategories(record: Record) -> list[str]:
    """`category/subcategory+category/subcategory` as its subcategories."""
    return [part.rsplit("/", 1)[-1] for part in (record.scenario or "unnamed").split("+")]


def _benchmark_file(
    root: Path, record: Record, labels: Sequence[str], numbers: dict[str, int]
) -> Path:
    """A violating clip lies under its scenario's category, a twin as benign under the same."""
    category = (record.scenario or "").split("/", 1)[0]
    if category not in numbers or (labels and category not in labels):
        category = labels[0] if labels else ""
    # Safe scenes have no category of their own: a hash spreads them evenly.
    spread = hashlib.sha256(record.id.encode()).digest()[0] % len(numbers) + 1
    number = numbers.get(category, spread)
    name = _subcategories(record)[0] if labels else "benign"
    return root / "genai" / f"C{number}" / f"{name}_benchmark.json"
