"""Five policies for SafeWorld, from strict to permissive, and what is true of a clip under each.

Knows which scenarios the policies judge differently from the default policy. The policies' texts are
in `policies/*.yaml` beside this file; a change here needs the matching rule there. Knows nothing of
pictures or models.
"""

from collections.abc import Mapping
from pathlib import Path

from safelens.data.records import Record
from safelens.policy import Policy
from safelens.safeworld import Truth

POLICIES: tuple[str, ...] = ("strict", "cautious", "standard", "relaxed", "permissive")
"""Names from strict to permissive. What one policy blocks, every stricter one blocks too."""

_Changes = Mapping[tuple[str, bool], tuple[str, ...]]

# Keys: scenario and whether its violating version is shown (False: its safe twin).
# Values: categories that the policy adds to those of the next milder policy.
_CAUTIOUS_ADDS: _Changes = {
    ("violence/street_fight", False): ("violence",),
    ("violence/fighting", False): ("violence",),
    ("illegal/war", True): ("violence",),
    ("extreme/torture", True): ("violence",),
}
_STRICT_ADDS: _Changes = {
    ("sexual/evident", False): ("sexual",),
    ("sexual/implication", False): ("sexual",),
    ("violence/vandalism", False): ("violence",),
    ("illegal/drugs", False): ("illegal",),
    ("extreme/hate_rally", False): ("extreme",),
    ("abuse/animal_abuse", True): ("violence",),
    ("illegal/arson", True): ("violence",),
}
# Scenarios that the policy allows beyond the next stricter one.
_RELAXED_ALLOWS = frozenset(
    {
        "sexual/implication",
        "abuse/cyberbullying",
        "violence/vandalism",
        "misinformation/altered_video",
    }
)
_PERMISSIVE_ALLOWS = frozenset(
    {
        "sexual/subtle",
        "violence/street_fight",
        "misinformation/fabricated",
        "illegal/shoplifting",
        "illegal/war",
    }
)

_ADDS: Mapping[str, tuple[_Changes, ...]] = {
    "strict": (_CAUTIOUS_ADDS, _STRICT_ADDS),
    "cautious": (_CAUTIOUS_ADDS,),
}
_ALLOWS: Mapping[str, frozenset[str]] = {
    "relaxed": _RELAXED_ALLOWS,
    "permissive": _RELAXED_ALLOWS | _PERMISSIVE_ALLOWS,
}


def load_policy(name: str) -> Policy:
    """One of the five policies.

    Args:
        name: one of POLICIES.

    Raises:
        ValueError: there is no such policy.
    """
    return Policy.load(policy_path(name))


def policy_path(name: str) -> Path:
    """The YAML file of one of the five policies. Raises ValueError for another name."""
    _check(name)
    return Path(__file__).with_name("policies") / f"{name}.yaml"


def labels_under(truth: Truth | Record, policy_name: str) -> tuple[str, ...]:
    """The categories that a clip violates under one of the five policies.

    Args:
        truth: a scene's truth, or a SafeWorld record, whose true labels count.
        policy_name: one of POLICIES. `standard` agrees with the default policy.

    Returns:
        Category ids, those of the clip's own scenario first; empty for safe.

    Raises:
        ValueError: no such policy, or a record without scenario and true labels.
    """
    _check(policy_name)
    labels = truth.true_labels if isinstance(truth, Record) else truth.labels
    if truth.scenario is None or labels is None:
        raise ValueError(
            f"record {getattr(truth, 'id', '')!r} has no scenario or no true labels:"
            " only SafeWorld's records have a truth under every policy"
        )
    # Scenes of a clip with two are all violating or all twins, and labels come scene by scene.
    violating = bool(labels)
    judged: list[str] = []
    added: list[str] = []
    for number, scenario in enumerate(truth.scenario.split("+")):
        if violating and scenario not in _ALLOWS.get(policy_name, ()):
            judged.append(labels[number])
        for changes in _ADDS.get(policy_name, ()):
            added += changes.get((scenario, violating), ())
    return tuple(dict.fromkeys(judged + added))


def _check(name: str) -> None:
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}: expected one of {', '.join(POLICIES)}")
