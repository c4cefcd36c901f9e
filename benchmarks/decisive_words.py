"""How well `safeworld.decisive` tells the truth about a violation from other texts.

    python benchmarks/decisive_words.py [SCENES]

Prints the share of texts of each kind that name what violates, over the violating among so many scenes.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict

from safelens.data.records import Record
from safelens.safeworld import Scene, sample_scene
from safelens.safeworld.decisive import decisive
from safelens.safeworld.writer import clip_id

SEED = 11


def record_of(scene: Scene) -> Record:
    """The scene's record, without captions."""
    truth = scene.truth
    return Record(
        id=clip_id(scene.seed, scene.index, twin=truth.twin),
        video="none.mp4",
        labels=truth.labels,
        true_labels=truth.labels,
        source="safeworld",
        description=truth.description,
        explanation=truth.explanation,
    )


def captions(scene: Scene, interval: tuple[float, float]) -> str:
    """What seven frames spread over the interval show."""
    start, end = interval
    return " ".join(scene.caption(start + (end - start) * k / 8) for k in range(1, 8))


def rates(scenes: int) -> dict[str, tuple[float, int]]:
    """Kind of text to the share that names what violates, and how many were looked at."""
    rng = random.Random(0)
    violating = [s for s in (sample_scene(SEED, i) for i in range(scenes)) if s.truth.labels]
    found: dict[str, list[bool]] = defaultdict(list)
    for scene in violating:
        truth, twin = scene.truth, scene.twin()
        kinds = set(truth.scenario.split("+"))
        others = [s for s in violating if kinds.isdisjoint(s.truth.scenario.split("+"))]
        category = [s for s in others if s.truth.labels[0] == truth.labels[0]]
        assert truth.interval is not None
        texts = {
            "its explanation": truth.explanation,
            "its description": truth.description,
            "captions of its violation": captions(scene, truth.interval),
            "its twin's explanation": twin.truth.explanation,
            "its twin's description": twin.truth.description,
            "explanation of another scenario": rng.choice(others).truth.explanation,
            "explanation of another scenario of the category": rng.choice(
                category
            ).truth.explanation,
            "explanation of any other violating scene": rng.choice(
                [s for s in violating if s is not scene]
            ).truth.explanation,
        }
        for one in (decisive(record_of(scene)) or {}).values():
            for kind, text in texts.items():
                found[kind].append(one.named_in(text))
    return {kind: (sum(named) / len(named), len(named)) for kind, named in found.items()}


if __name__ == "__main__":
    for kind, (share, number) in rates(int(sys.argv[1]) if sys.argv[1:] else 4000).items():
        print(f"{100 * share:6.2f} %  of {number:,}: {kind}")
