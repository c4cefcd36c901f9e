"""A written safety policy: its categories, their rules, and the YAML file they come from.

Knows the file format, its limits and where in a file an error is. Knows nothing about prompts,
models or verdicts.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from safelens.yaml_lines import Path as _Path
from safelens.yaml_lines import read_yaml

SAFE = "safe"
"""The class of a video that violates nothing; reserved, never a category."""

MAX_CATEGORIES = 100
MAX_BYTES = 1_000_000

RuleKind = Literal["blocked", "allowed"]
_ID = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_POLICY_KEYS = ("id", "name", "version", "categories")
_CATEGORY_KEYS = ("id", "name", "core_value", "rules")
_RULE_FORM = "'- blocked: TEXT' or '- allowed: TEXT'"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a policy: what was found, what was expected, and the line (from 1)."""

    message: str
    line: int | None = None


class PolicyError(ValueError):
    """A policy that cannot be used; the message names the source, every line and what was expected.

    Attributes:
        source: The file or name that was read.
        problems: Everything found wrong, in file order; never empty.
    """

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(
                f"{source}{'' if p.line is None else f':{p.line}'}: {p.message}" for p in problems
            )
        )


@dataclass(frozen=True)
class Rule:
    """One sentence that blocks or allows a kind of content."""

    kind: RuleKind
    text: str


@dataclass(frozen=True)
class Category:
    """One category of a policy.

    Attributes:
        id: Short stable name, used in verdicts and records.
        name: What the model reads and writes.
        core_value: Why the category exists, one sentence.
        rules: At least one rule.
    """

    id: str
    name: str
    core_value: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Policy:
    """A policy of 1 to 100 categories; checked when it is made.

    Raises:
        PolicyError: When ids or names repeat, are reserved or malformed, or a category has no rule.
    """

    id: str
    name: str
    version: str
    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        problems = [Problem(f"{_where(path)}{text}") for path, text in _check(self.to_dict())]
        if problems:
            raise PolicyError(f"policy {self.id!r}", problems)

    @classmethod
    def load(cls, path_or_name: str | Path) -> Policy:
        """Read a policy file, or a policy of the package by its name (see `packaged_policies`).

        Raises:
            PolicyError: When there is no such file or name, or its content is not a policy.
        """
        if isinstance(path_or_name, str) and path_or_name in packaged_policies():
            data = (_package_folder() / f"{path_or_name}.yaml").read_bytes()
            source = f"{path_or_name}.yaml (packaged)"
        else:
            source = str(path_or_name)
            try:
                data = Path(path_or_name).read_bytes()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                names = ", ".join(packaged_policies())
                text = f"cannot be read ({reason}); expected a YAML file or one of: {names}"
                raise PolicyError(source, [Problem(text)]) from error
        if len(data) > MAX_BYTES:
            text = f"{len(data)} bytes; expected a policy file of at most {MAX_BYTES} bytes"
            raise PolicyError(source, [Problem(text)])
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise PolicyError(source, [Problem("not UTF-8; expected UTF-8 text", line)]) from error
        return cls.from_yaml(text, source=source)

    @classmethod
    def from_yaml(cls, text: str, source: str = "<policy>") -> Policy:
        """Read a policy from YAML text; `source` names it in errors.

        Raises:
            PolicyError: With every problem found and its line.
        """
        document = read_yaml(text, as_text=(("version",),))
        problems = [Problem(message, line) for line, message in document.problems]
        data = document.data
        for path, message in _check(data) if document.readable else ():
            problems.append(Problem(message, document.line(path)))
        if problems:
            raise PolicyError(source, sorted(problems, key=lambda p: p.line or 0))
        return cls(
            id=data["id"],
            name=_squash(data["name"]),
            version=_squash(data["version"]),
            categories=tuple(
                Category(
                    id=category["id"],
                    name=_squash(category["name"]),
                    core_value=_squash(category["core_value"]),
                    rules=tuple(
                        Rule(kind, _squash(text))
                        for rule in category["rules"]
                        for kind, text in rule.items()
                    ),
                )
                for category in data["categories"]
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain data, in the form of its YAML file."""
        return {
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "categories": [
                {
                    "id": c.id,
                    "name": c.name,
                    "core_value": c.core_value,
                    "rules": [{r.kind: r.text} for r in c.rules],
                }
                for c in self.categories
            ],
        }

    def to_yaml(self) -> str:
        """The policy as YAML text that `from_yaml` reads back to an equal policy."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=10_000)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content in a canonical form: layout and comments of the file do not count."""
        canonical = json.dumps(
            self.to_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Category ids in policy order, then "safe": the order of the probe's classes."""
        return (*(c.id for c in self.categories), SAFE)

    def by_name(self) -> Policy:
        """The same policy with its categories in the order of their names."""
        ordered = sorted(self.categories, key=lambda c: name_key(c.name))
        return replace(self, categories=tuple(ordered))

    def category(self, category_id: str) -> Category:
        """The category with this id.

        Raises:
            KeyError: When the policy has none; the message lists its ids.
        """
        for category in self.categories:
            if category.id == category_id:
                return category
        raise KeyError(
            f"policy {self.id!r} has no category {category_id!r}; it has {self.labels[:-1]}"
        )

    def warnings(self) -> list[str]:
        """What is legal but probably not meant, such as a category that blocks nothing."""
        return [
            f"category {c.id!r} has no blocked rule, so nothing can violate it"
            for c in self.categories
            if all(rule.kind == "allowed" for rule in c.rules)
        ]


def packaged_policies() -> tuple[str, ...]:
    """Names of the policies that the package carries, for `Policy.load`."""
    names = (entry.name for entry in _package_folder().iterdir())
    return tuple(sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml")))


def name_key(name: str) -> str:
    """The form in which two category names count as the same name."""
    return _squash(unicodedata.normalize("NFKC", name)).casefold()


def _package_folder() -> Any:
    return resources.files("safelens") / "policies"


def _squash(text: str) -> str:
    return " ".join(text.split())


def _where(path: _Path) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".") + ": "


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"{json.dumps(value, ensure_ascii=False, default=str)[:60]}"


def _check(data: Any) -> Iterator[tuple[_Path, str]]:
    """Yield (place, message) for everything wrong with a policy given as plain data."""
    if not isinstance(data, dict):
        yield (), f"found {_found(data)}; expected a mapping with the keys {_list(_POLICY_KEYS)}"
        return
    yield from _check_keys(data, (), _POLICY_KEYS, "a policy")
    yield from _check_id(data, ())
    for key in ("name", "version"):
        yield from _check_text(data, (key,), one_line=True)
    categories = data.get("categories")
    if "categories" not in data:
        return
    if not isinstance(categories, list) or not 1 <= len(categories) <= MAX_CATEGORIES:
        count = f"{len(categories)} categories" if isinstance(categories, list) else None
        found = count or _found(categories)
        yield ("categories",), f"found {found}; expected a list of 1 to {MAX_CATEGORIES} categories"
        return
    seen: dict[tuple[str, str], int] = {}
    for i, category in enumerate(categories):
        at: _Path = ("categories", i)
        if not isinstance(category, dict):
            yield at, f"found {_found(category)}; expected a category with {_list(_CATEGORY_KEYS)}"
            continue
        yield from _check_keys(category, at, _CATEGORY_KEYS, "a category")
        yield from _check_id(category, at)
        for key in ("name", "core_value"):
            yield from _check_text(category, (*at, key), one_line=key == "name")
        for key in ("id", "name"):
            value = category.get(key)
            if not isinstance(value, str):
                continue
            if name_key(value) == SAFE:
                yield (*at, key), f'{key} "{value}" is reserved for the class of harmless videos'
            first = seen.setdefault((key, name_key(value)), i)
            if first != i:
                yield (
                    (*at, key),
                    f"duplicate {key} {_found(value)}, already used by category {first + 1}; "
                    "expected every category to have its own",
                )
        if "rules" in category:
            yield from _check_rules(category["rules"], (*at, "rules"))


def _check_rules(rules: Any, at: _Path) -> Iterator[tuple[_Path, str]]:
    if not isinstance(rules, list) or not rules:
        found = "an empty list" if isinstance(rules, list) else _found(rules)
        yield at, f"found {found} for rules; expected a list of at least one {_RULE_FORM}"
        return
    for i, rule in enumerate(rules):
        if not isinstance(rule, dict) or len(rule) != 1:
            found = f"{len(rule)} keys" if isinstance(rule, dict) else _found(rule)
            yield (*at, i), f"found {found} for a rule; expected {_RULE_FORM}"
            continue
        (kind,) = rule
        if kind not in ("blocked", "allowed"):
            yield (*at, i, kind), f"unknown rule kind {_found(kind)}; expected {_RULE_FORM}"
        else:
            yield from _check_text(rule, (*at, i, kind), one_line=False)


def _check_keys(
    data: dict[Any, Any], at: _Path, allowed: tuple[str, ...], what: str
) -> Iterator[tuple[_Path, str]]:
    for key in data:
        if key not in allowed:
            yield (*at, key), f"unknown key {_found(key)} in {what}; expected {_list(allowed)}"
    for key in allowed:
        if key not in data:
            yield at, f"{what} without the key {key!r}; expected {_list(allowed)}"


def _check_id(data: dict[Any, Any], at: _Path) -> Iterator[tuple[_Path, str]]:
    value = data.get("id")
    if "id" in data and not (isinstance(value, str) and _ID.fullmatch(value)):
        yield (
            (*at, "id"),
            f"found {_found(value)} for id; expected a lower-case word of a-z, 0-9, _ and - that "
            "starts with a letter, at most 64 long",
        )


def _check_text(data: dict[Any, Any], at: _Path, one_line: bool) -> Iterator[tuple[_Path, str]]:
    key = at[-1]
    if key not in data:
        return
    value = data[key]
    if not isinstance(value, str):
        hint = " (quote it)" if isinstance(value, bool | int | float) else ""
        yield at, f"found {_found(value)} for {key}; expected text{hint}"
    elif not value.strip():
        yield at, f"found empty text for {key}; expected text"
    elif one_line and len(value.strip().splitlines()) > 1:
        yield at, f"found several lines for {key}; expected one line"
    elif any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\r\n" for char in value):
        yield at, f"found a control character in {key}; expected printable text"
    elif "<|" in value:
        # Chat templates mark turns and media with <|...|>: such text would end the policy early.
        yield at, f"found '<|' in {key}, the start of a model's control token; expected plain text"


def _list(keys: tuple[str, ...]) -> str:
    return ", ".join(keys)
