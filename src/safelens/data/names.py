"""Category names as other people's data sets write them, and which category of a policy each means.

Knows the names that SafeWatch uses for its six categories and their fixed numbers. Knows nothing of
files. Names decide, never numbers: the adaptive part of SafeWatch renumbers per prompt.
"""

import re
from collections.abc import Iterable, Mapping

from safelens.policy import SAFE, Category, Policy, Rule, name_key

SAFEWATCH_NAMES: dict[str, tuple[str, ...]] = {
    "sexual": ("Sexual Content", "NSFW Content", "Adult Material", "Explicit Sexual Content"),
    "abuse": (
        "Harassment & Bullying",
        "Abuse and Harassment",
        "Bullying and Intimidation",
        "Harassment and Abuse",
    ),
    "violence": (
        "Threats, Violence & Harm",
        "Violence and Harmful Acts",
        "Threatening and Dangerous Behavior",
        "Violence, Threats, and Harm",
    ),
    "misinformation": (
        "False & Deceptive Information",
        "Misinformation and Deception",
        "False and Misleading Content",
        "Deceptive Information",
    ),
    "illegal": (
        "Illegal/Regulated Activities",
        "Unlawful and Regulated Content",
        "Illegal Activities and Restricted Goods",
        "Prohibited and Regulated Actions",
    ),
    "extreme": (
        "Hateful Content & Extremism",
        "Hate Speech and Extremism",
        "Disturbing Content and Self-Harm",
        "Extremist and Hateful Material",
    ),
}
"""Category id to the names that SafeWatch gives it, the usual one first; in the order C1 to C6 of the
benchmark's own numbers."""

_NUMBERED = re.compile(r"C\d{1,3}\s?\((.*)\)", re.DOTALL)


class CategoryNames:
    """Finds the category of a policy that a written name means.

    In this order: the user's own names, the policy's ids and names, SafeWatch's names for the
    category that has SafeWatch's id or one of its names.

    Args:
        policy: whose categories are meant.
        own: further names, each with a category id of the policy or `safe`.

    Raises:
        ValueError: `own` names a category that the policy does not have.
    """

    def __init__(self, policy: Policy, own: Mapping[str, str] | None = None) -> None:
        self.policy = policy
        self._own = {name_key(name): target for name, target in (own or {}).items()}
        for name, target in (own or {}).items():
            if target not in policy.labels:
                raise ValueError(
                    f"{name}={target}: policy {policy.id!r} has no {target!r};"
                    f" expected one of {', '.join(policy.labels)}"
                )
        self._known: dict[str, str] = {SAFE: SAFE}
        for category in policy.categories:
            self._known[name_key(category.name)] = category.id
        for category in policy.categories:
            self._known.setdefault(name_key(category.id), category.id)
        self._numbers: list[str | None] = []
        for safewatch_id, names in SAFEWATCH_NAMES.items():
            found = (self._known.get(name_key(name)) for name in (*names, safewatch_id))
            target_id = next((category_id for category_id in found if category_id), None)
            self._numbers.append(target_id)
            if target_id is not None:
                for name in names:
                    self._known.setdefault(name_key(name), target_id)

    def find(self, name: str) -> str | None:
        """The category id, or `safe`, that a name means; None where it means nothing known.

        Read as well: a name in its number's brackets, such as "C2(Adult Material)".
        """
        for text in (name, *_NUMBERED.findall(name.strip())):
            key = name_key(text).rstrip(" :")
            if found := self._own.get(key) or self._known.get(key):
                return found
        return None

    def numbered(self, number: int) -> str | None:
        """The category id of a number of the benchmark (1 to 6); None for any other number."""
        return self._numbers[number - 1] if 1 <= number <= len(self._numbers) else None


def bare_policy(categories: Iterable[tuple[str, str]]) -> Policy:
    """A policy of ids and names alone, for writing and reading answers.

    Every Policy checks its texts, which takes longer than all else that is done with an entry.

    Args:
        categories: id and name of each.

    Raises:
        PolicyError: ids or names repeat or are malformed.
    """
    rule = (Rule("blocked", "-"),)
    return Policy("bare", "-", "-", tuple(Category(i, name, "-", rule) for i, name in categories))
