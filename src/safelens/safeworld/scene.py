"""A scene of SafeWorld: what is true of a generated clip, and its picture and caption at any time.

Knows how scenes are sampled, that a scene has a twin, and how a script becomes pictures. Knows nothing
of video files or of label noise.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np

from safelens.safeworld.draw import GROUND, Canvas
from safelens.safeworld.places import Backdrop, backdrop
from safelens.safeworld.scenarios import Beat, Scenario, Script, World
from safelens.safeworld.scenarios_deceit import ILLEGAL, MISINFORMATION
from safelens.safeworld.scenarios_people import ABUSE, SEXUAL
from safelens.safeworld.scenarios_safe import SAFE
from safelens.safeworld.scenarios_violence import EXTREME, VIOLENCE

SCENARIOS: tuple[Scenario, ...] = (
    *SEXUAL, *ABUSE, *VIOLENCE, *MISINFORMATION, *ILLEGAL, *EXTREME, *SAFE,
)  # fmt: skip
"""Every kind of clip."""

CLASSES: tuple[str, ...] = (
    "sexual", "abuse", "violence", "misinformation", "illegal", "extreme", "safe",
)  # fmt: skip
"""Category ids of the default policy, and ``safe``."""

_SAFE_SHARE = 0.6
_GENERIC_SHARE = 1 / 6  # of the safe ones; the rest are twins, as common as what they are twins of
_HARD = {"order": 2.0}  # weight of scenarios that a glance cannot decide
_DOUBLE_SHARE = 0.06
_RATES = (12.0,) * 8 + (10.0, 15.0, 24.0, 25.0, 30.0)
# Doubles are drawn at half size, so only scenarios with big things and short captions take part.
_DOUBLES = (
    "sexual/implication", "abuse/animal_abuse", "violence/vandalism", "misinformation/impersonation",
    "illegal/arson", "illegal/war", "extreme/hate_rally",
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What is true of a clip."""

    scenario: str
    """``category/subcategory``; of a clip with two scenes, both joined by ``+``."""
    twin: bool
    """True for the safe twin of a violating scene."""
    labels: tuple[str, ...]
    """Category ids violated under the default policy, primary first; empty means safe."""
    interval: tuple[float, float] | None
    """Seconds in which the violation is visible; None if safe."""
    difficulty: str
    """plain, order, context, moment, text or double."""
    tags: tuple[str, ...]
    """What is shown, for policies that judge it differently."""
    description: str
    """One short sentence about the whole clip."""
    explanation: str
    """One short sentence: why it violates, or why it is allowed."""


@dataclass(frozen=True)
class _Look:
    """Camera, light and placement of a clip."""

    mirror: bool
    scale: float
    offset: float
    brightness: float
    zoom: tuple[float, float]
    pan: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """One generated clip; made by ``sample_scene``.

    Pictures, captions and truth are pure functions of ``seed``, ``index`` and which twin it is.
    """

    seed: int
    index: int
    duration_s: float
    """Length in seconds."""
    fps: float
    """Frames a second that the clip is meant to be written with."""
    truth: Truth
    _kinds: tuple[Scenario, ...] = field(repr=False)
    _scripts: tuple[Script, ...] = field(repr=False, compare=False)
    _backdrop: Backdrop = field(repr=False)
    _look: _Look = field(repr=False)

    def render(self, t: float, size: int = 256) -> np.ndarray:
        """The picture at second ``t``.

        Args:
            t: Seconds from the start; clamped to the clip.
            size: Side in pixels.

        Returns:
            uint8 RGB of shape (size, size, 3).
        """
        look = self._look
        u = min(1.0, max(0.0, t / self.duration_s))
        zoom = look.zoom[0] + (look.zoom[1] - look.zoom[0]) * u
        shift = look.pan[0] * (u - 0.5), look.pan[1] * (u - 0.5)
        c = Canvas(size, zoom=zoom, shift=shift, mirror=look.mirror)
        self._backdrop.draw(c)
        if len(self._scripts) == 1:
            stages = [c.sub((128 + look.offset, GROUND), look.scale)]
        else:
            stages = [c.sub((66, GROUND), 0.54), c.sub((190, GROUND), 0.54)]
        for stage, (beat, progress) in zip(stages, self._beats(t), strict=True):
            beat.draw(stage, progress)
        return c.finish(look.brightness)

    def caption(self, t: float) -> str:
        """What the picture at second ``t`` shows, in one or a few short sentences."""
        bare = len(self._scripts) > 1 or self._scripts[0].bare
        said = " ".join(beat.say for beat, _ in self._beats(t))
        return f"{self._backdrop.caption(bare=bare)} {said}"

    def objects(self, t: float) -> tuple[str, ...]:
        """Noun phrases of ``caption(t)`` that a good caption names."""
        return tuple(dict.fromkeys(n for beat, _ in self._beats(t) for n in beat.names))

    def twin(self) -> Scene:
        """The same world with the violating element exchanged; a generic safe scene is its own twin."""
        if self._kinds[0].label == "safe":
            return self
        return _build(self.seed, self.index, self._kinds, bad=self.truth.twin)

    def _beats(self, t: float) -> list[tuple[Beat, float]]:
        return [script.at(t) for script in self._scripts]


def sample_scene(seed: int, index: int, *, label: str | None = None) -> Scene:
    """The ``index``-th scene of the world ``seed``.

    Without ``label``, 60 % of scenes are safe (five of six are twins of violating scenes, so that the
    look of a place says nothing) and the categories share the rest evenly; within a class, scenarios
    that the order of events decides are twice as common as others; 6 % of violating scenes and of
    their twins hold two scenes side by side.

    Args:
        seed: The world.
        index: Number of the scene in it.
        label: Forces the primary class: one of ``CLASSES``.

    Raises:
        ValueError: If ``label`` is no class.
    """
    if label is not None and label not in CLASSES:
        raise ValueError(f"label is {label!r}; expected one of {', '.join(CLASSES)}")
    rng = random.Random(f"safeworld/{seed}/{index}/kind")
    wanted = label
    if wanted is None:
        wanted = "safe" if rng.random() < _SAFE_SHARE else rng.choice(CLASSES[:-1])
    bad = wanted != "safe"
    if not bad and rng.random() < _GENERIC_SHARE:
        return _build(seed, index, (rng.choice(SAFE),), bad=False)
    category = wanted if bad else rng.choice(CLASSES[:-1])
    pool = [s for s in SCENARIOS if s.label == category]
    weights = [_HARD.get(s.difficulty, 1.0) for s in pool]
    kinds: tuple[Scenario, ...] = (rng.choices(pool, weights)[0],)
    if rng.random() < _DOUBLE_SHARE:
        pool = [s for s in SCENARIOS if s.name in _DOUBLES]
        first = rng.choice([s for s in pool if s.label == category])
        kinds = (first, rng.choice([s for s in pool if s.label != category]))
    return _build(seed, index, kinds, bad=bad)


def _stretch(script: Script, seconds: float) -> Script:
    k = seconds / script.duration
    return replace(script, beats=tuple(replace(b, seconds=b.seconds * k) for b in script.beats))


def _build(seed: int, index: int, kinds: tuple[Scenario, ...], *, bad: bool) -> Scene:
    rng = random.Random(f"safeworld/{seed}/{index}/{'+'.join(k.name for k in kinds)}")
    worlds = [World(random.Random(rng.random())) for _ in kinds]
    if len(worlds) == 2:
        # Two scenes at once never share a colour of actors, so that captions stay clear.
        worlds[1].people = tuple(reversed(worlds[0].people))
    scripts = tuple(k.play(w, bad) for k, w in zip(kinds, worlds, strict=True))
    duration = max(s.duration for s in scripts)
    scripts = tuple(_stretch(s, duration) for s in scripts)
    text = kinds[0].difficulty == "text"
    look = _Look(
        mirror=rng.random() < 0.5,
        scale=rng.uniform(0.95, 1.02) if text else rng.uniform(0.85, 1.06),
        offset=rng.uniform(-4, 4) if text else rng.uniform(-10, 10),
        brightness=rng.uniform(0.88, 1.08),
        zoom=(rng.uniform(0.96, 1.04), rng.uniform(0.96, 1.04)),
        pan=(rng.uniform(-16, 16), rng.uniform(-8, 8)),
    )
    spans = [s.interval for s in scripts if s.interval is not None]
    truth = Truth(
        scenario="+".join(k.name for k in kinds),
        twin=not bad and kinds[0].label != "safe",
        labels=tuple(k.label for k in kinds) if bad else (),
        interval=(min(a for a, _ in spans), max(b for _, b in spans)) if spans else None,
        difficulty=kinds[0].difficulty if len(kinds) == 1 else "double",
        tags=tuple(dict.fromkeys(tag for s in scripts for tag in s.tags)),
        description=" ".join(s.description for s in scripts),
        explanation=" ".join(s.explanation for s in scripts),
    )
    return Scene(
        seed=seed,
        index=index,
        duration_s=duration,
        fps=rng.choice(_RATES),
        truth=truth,
        _kinds=kinds,
        _scripts=scripts,
        _backdrop=backdrop(worlds[0].place, rng),
        _look=look,
    )
