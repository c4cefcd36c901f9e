"""Policies that are drawn for training, each with its truth: categories sampled, renamed and shuffled.

Knows kinds of clips, names and rules. Knows nothing of models.

As in SafeWatch's adaptive data, a policy has one to six categories in random order, under one of several
names and wordings, and what is not in it is not violated. Unlike there, a category may also be any set of
kinds under a name that says nothing of them: such a policy cannot be judged but by reading it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from recipes.safewatch_tiny.kinds import PHRASES, SEEN, Kind, kinds_of
from safelens.data.records import Record
from safelens.policy import Category, Policy, Rule

_THEMES: Mapping[str, tuple[str, str, str, str]] = {
    "sexual": ("Sexual Content", "Adult Material", "Nudity", "Erotic Matter"),
    "abuse": ("Harassment & Bullying", "Cruelty", "Humiliation", "Abuse of Others"),
    "violence": ("Threats, Violence & Harm", "Violent Acts", "Physical Harm", "Fights"),
    "misinformation": ("False & Deceptive Information", "Deception", "Fake Content", "Lies"),
    "illegal": ("Illegal/Regulated Activities", "Crime", "Unlawful Acts", "Crime and War"),
    "extreme": ("Hateful Content & Extremism", "Hatred", "Extreme Content", "Hate and Torment"),
}
_NAMES = (
    "Amber Topics", "Blue List", "Care Notes", "Delta Matters", "Everyday Scenes", "First Group",
    "Green List", "House Rules", "Inner Circle", "Joint Matters", "Kept Apart", "Last Group",
    "Main Topics", "Night Watch", "Open Matters", "Private Things", "Quiet Hours", "Red List",
    "Second Group", "Town Rules", "Upper Floor", "Village Topics", "White List", "Yellow Notes",
)  # fmt: skip
"""Names that say nothing of what is in a category."""
_VALUES = (
    "Keep what is shown as the owners of this place want it.",
    "Respect the people who watch.",
    "Show only what belongs here.",
    "Protect users from what they did not ask for.",
)


@dataclass(frozen=True)
class Ruled:
    """A policy and what each of its categories blocks.

    Attributes:
        policy: what a model reads.
        blocked: category id to kinds.
    """

    policy: Policy
    blocked: Mapping[str, frozenset[Kind]]

    def labels(self, kinds: Iterable[Kind]) -> tuple[str, ...]:
        """The categories that a clip of these kinds violates."""
        shown = frozenset(kinds)
        return tuple(c.id for c in self.policy.categories if self.blocked[c.id] & shown)


def ruled(
    categories: Sequence[tuple[str, Sequence[Kind], Sequence[Kind]]], rng: random.Random
) -> Ruled:
    """A policy in the order of its categories, worded at random.

    Args:
        categories: a name, kinds that are blocked, and kinds that are allowed, each.
        rng: source of wordings.
    """
    found = []
    for number, (name, blocked, allowed) in enumerate(categories):
        rules = [Rule("blocked", _worded(kind, rng)) for kind in blocked]
        rules += [Rule("allowed", _worded(kind, rng)) for kind in allowed]
        found.append(Category(f"c{number}", name, rng.choice(_VALUES), tuple(rules)))
    policy = Policy("drawn", "Drawn", "1", tuple(found))
    return Ruled(
        policy,
        {
            category.id: frozenset(blocked)
            for category, (_, blocked, _) in zip(found, categories, strict=True)
        },
    )


def default_policy() -> Ruled:
    """The default policy with its truth."""
    policy = Policy.load("default")
    return Ruled(
        policy,
        {
            c.id: frozenset(k for k in PHRASES if k[1] and k[0].startswith(f"{c.id}/"))
            for c in policy.categories
        },
    )


def sampled(rng: random.Random, kinds: Sequence[Kind] = SEEN, *, most: int = 6) -> Ruled:
    """A policy of one to six categories: of the usual themes, or of any kinds under names that say nothing.

    Args:
        rng: source of all choices.
        kinds: of which policies may speak.
        most: as many categories at most, and rules that block in each. At least half as many where it is above six: a
            category is read alone, so a policy of many teaches the reading of one as well, and a video that was read
            once is asked about each.
    """
    count = rng.randint(1 if most <= 6 else most // 2, most)
    if most > 2 and count <= 6 and rng.random() < 0.3:
        return ruled(
            [_theme(theme, kinds, rng) for theme in rng.sample(sorted(_THEMES), count)], rng
        )
    names, free = rng.sample(_NAMES, count), rng.sample(list(kinds), len(kinds))
    categories = []
    for name in names[: len(kinds)]:
        # as many as there are kinds for
        left = max(1, len(free) - len(names) + len(categories))
        some = [free.pop() for _ in range(min(rng.choice((1, 1, 1, 2, 2, 3, 4)), most, left))]
        others = [kind for kind in kinds if kind not in some]
        categories.append((name, some, rng.sample(others, rng.randint(0, min(2, most - 1)))))
    return ruled(categories, rng)


def _theme(
    theme: str, kinds: Sequence[Kind], rng: random.Random
) -> tuple[str, list[Kind], list[Kind]]:
    own = [kind for kind in kinds if kind[0].startswith(f"{theme}/")]
    blocked = [kind for kind in own if kind[1]]
    blocked = rng.sample(blocked, rng.randint(1, len(blocked)))
    allowed = [kind for kind in own if kind not in blocked]
    return (
        rng.choice(_THEMES[theme]),
        blocked,
        rng.sample(allowed, min(len(allowed), rng.randint(0, 2))),
    )


def _worded(kind: Kind, rng: random.Random) -> str:
    text = rng.choice(PHRASES[kind])
    return f"{text[0].upper()}{text[1:]}."


def explained(record: Record, under: Ruled) -> str:
    """What a clip shows and which category blocks it, a sentence a scene: short, specific and right."""
    return " ".join(
        f"{seen}: {verdict(kind, under)}."
        for kind, seen in zip(_kinds(record), _seen(record), strict=True)
    )


def verdict(kind: Kind, under: Ruled) -> str:
    """Which categories block a kind, in words."""
    names = [under.policy.category(name).name for name in under.labels([kind])]
    return f"{' and '.join(names)} blocks it" if names else "no rule blocks it"


def _kinds(record: Record) -> list[Kind]:
    kinds_of(record)
    assert record.scenario is not None
    return [(name, bool(record.true_labels)) for name in record.scenario.split("+")]


def _seen(record: Record) -> list[str]:
    """What each scene shows: of its explanation what stands before the judgement, or its description."""
    told, why = (
        re.split(r"(?<=\.) ", text) if "+" in (record.scenario or "") else [text]
        for text in (record.description or "", record.explanation or "")
    )
    return [
        description.rstrip(".") if name.startswith("safe/") else explanation.partition(":")[0]
        for (name, _), description, explanation in zip(_kinds(record), told, why, strict=True)
    ]
