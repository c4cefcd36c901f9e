"""From what the pairs of backbones answered to the grid's figures.

Knows pairs and their answers. Runs no model, and knows nothing of how figures are printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.curation import over_seeds, spread
from benchmarks.paper.backbones import CLIPS, FAMILIES, PAIRS, pair
from benchmarks.paper.measured import accuracy, given
from benchmarks.paper.stages import TEST, records_of
from safelens.data.records import Record
from safelens.evaluate.cost import costs


def grid_figures(root: Path) -> dict[str, Any]:
    """Accuracy and cost of S1 by embedder, and of S2 by pair, on the first `CLIPS` test videos.

    Args:
        root: Where the stages' results are; all pairs must have answered.
    """
    records = records_of(TEST.folder(root))[:CLIPS]
    return {
        "videos": len(records),
        "s1": [
            {"embedder": name} | _measured(root, name, name, "screen", records) for name in FAMILIES
        ],
        "s2": [
            {"embedder": screens, "reasoner": deliberates}
            | _measured(root, screens, deliberates, "deliberate", records)
            for screens, deliberates in PAIRS
        ],
    }


def _measured(
    root: Path, screens: str, deliberates: str, stage: str, records: Sequence[Record]
) -> dict[str, Any]:
    said = given(pair(screens, deliberates), root, stage)
    answers = {record.id: said[record.id] for record in records}
    spent = costs(list(answers.values()))
    return {
        "accuracy": over_seeds([accuracy(records, answers)]),
        "seconds": spread([spent.seconds and spent.seconds.mean]),
        "gflops": spread([spent.gflops]),
    }
