"""Draw the SafeWorld clips of samples/: one a class, and a twin pair that a glance cannot decide.

python -m recipes.tiny.samples
"""

from __future__ import annotations

from pathlib import Path

from safelens.safeworld import Scene, sample_scene
from safelens.safeworld.encode import USUAL, encode

SEED = 7
WANTED = {
    "sexual": "sexual/evident",
    "abuse": "abuse/animal_abuse",
    "violence": "violence/shooting",
    "misinformation": "misinformation/altered_video",
    "illegal": "illegal/arson",
    "extreme": "extreme/hate_rally",
    "safe": "safe/picnic",
}


HARD = 43
"""A scene of violence/fighting: strike, then fall. Of its safe twin, which shows the same poses in another order
(fall, then help), the embedded bundle's S1 is unsure, and S2 decides."""


def first(scenario: str) -> Scene:
    """The first scene of the scenario in the world ``SEED``."""
    label = scenario.split("/")[0]
    scenes = (sample_scene(SEED, i, label=label) for i in range(10_000))
    return next(s for s in scenes if s.truth.scenario == scenario)


if __name__ == "__main__":
    out = Path("samples")
    hard = sample_scene(SEED, HARD, label="violence")
    scenes = {name: first(scenario) for name, scenario in WANTED.items()}
    for name, scene in (scenes | {"hard": hard, "hard-twin": hard.twin()}).items():
        encode(scene, USUAL, out / f"{name}.mp4")
        print(f"{name}: {scene.truth.scenario}, truth {scene.truth.labels or ('safe',)}")
