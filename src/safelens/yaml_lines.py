"""YAML as plain data that remembers its lines, for files whose errors must say where they are.

Knows YAML's syntax. Knows nothing about what a file should contain. Refuses what a configuration
does not need and what an attacker does: aliases, tags, deep nesting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""A place in the data: keys and indices from the root."""

_MAX_DEPTH = 20
_SCALARS = ("null", "bool", "int", "float")


@dataclass
class Document:
    """What a YAML text holds.

    Attributes:
        data: Mappings, lists and scalars; None when `readable` is false.
        readable: False when the text is no YAML at all.
        lines: The line, from 1, of every place (of its key, in a mapping).
        problems: (line or None, message) of everything that a reader cannot accept.
    """

    data: Any = None
    readable: bool = False
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[int | None, str]] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of a place, or of the nearest place around it that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_yaml(text: str, as_text: Sequence[Path] = ()) -> Document:
    """Read one YAML document; problems are returned, not raised.

    Args:
        text: The YAML text.
        as_text: Places whose numbers and dates are kept as they are written, such as a version.
    """
    document = Document()
    try:
        depth = 0
        # Events come as they are scanned, so hostile nesting is met before it costs anything.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            message = ""
            if depth > _MAX_DEPTH:
                message = f"nested more than {_MAX_DEPTH} deep; expected mappings and lists of text"
            elif isinstance(event, yaml.AliasEvent):
                message = f"alias '*{event.anchor}'; expected the text itself, aliases are not read"
            if message:
                document.problems.append((_line(event.start_mark), message))
                return document
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document.readable = True
        if root is None:
            document.lines[()] = 1
        else:
            document.data = _plain(root, (), document, as_text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" {error.context}" if error.context else ""
        message = f"not YAML: {error.problem}{context}; expected a valid YAML file"
        document.problems.append((_line(mark), message))
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        message = f"not YAML: character #x{ord(text[error.position]):04x}; expected printable text"
        document.problems.append((line, message))
    return document


def _line(mark: Any) -> int | None:
    return None if mark is None else int(mark.line) + 1


def _plain(node: yaml.Node, at: Path, document: Document, as_text: Sequence[Path]) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(at, line)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*at, i), document, as_text) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, at, document, as_text)
    tag = node.tag.rpartition(":")[2]
    written = str(node.value)
    if tag == "str" or at in as_text:
        return written
    if tag not in _SCALARS:
        message = f"found {written[:60]!r} of type {tag}; expected text (quote it)"
        document.problems.append((line, message))
        return written
    try:
        return yaml.safe_load(written)
    except (yaml.YAMLError, ValueError):
        return written


def _mapping(
    node: yaml.MappingNode, at: Path, document: Document, as_text: Sequence[Path]
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, child in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append((line, "a key that is not text; expected a plain key"))
            continue
        key = str(key_node.value)
        if key in data:
            document.problems.append((line, f"duplicate key {key!r}; expected it once"))
            continue
        document.lines[(*at, key)] = line
        data[key] = _plain(child, (*at, key), document, as_text)
    return data
