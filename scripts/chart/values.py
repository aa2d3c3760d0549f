"""Reads a chart's values.yaml with its comments.

The comment above a key describes it. A line `@schema {…}` in the comment is a piece of JSON schema
in YAML. It may also contain `k8s: core.v1.Toleration` (a type of the Kubernetes API) or
`like: inference` (the same keys as another section).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_SCHEMA = re.compile(r"^@schema\s+(\{.*\})$")
_COMMENT = re.compile(r"^\s*(?:-\s+)*#\s?(.*)$")


class UncommentedKeyError(Exception):
    """Keys without a description; the message names them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of the values, or an item of a list."""

    path: str
    """Such as gateway.image.tag; the items of a list have [] in their path, as in models[]."""
    description: str
    annotation: dict[str, Any]
    value: Any
    children: dict[str, Entry] = field(default_factory=dict)
    """Keys of a map."""
    item: Entry | None = None
    """The first item of a list of maps."""

    def walk(self) -> Iterator[Entry]:
        """This entry and all entries below it, in the order of the file."""
        yield self
        for child in self.children.values():
            yield from child.walk()
        if self.item is not None:
            yield from self.item.walk()


def read_values(path: Path) -> Entry:
    """The file's keys as a tree. Raises UncommentedKeyError."""
    text = path.read_text()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return _Reader(text.splitlines()).read(root)


class _Reader:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._uncommented: list[str] = []

    def read(self, root: yaml.MappingNode) -> Entry:
        entry = self._entry("", root, "", {})
        if self._uncommented:
            raise UncommentedKeyError(", ".join(self._uncommented))
        return entry

    def _entry(self, path: str, node: yaml.Node, text: str, annotation: dict[str, Any]) -> Entry:
        value = yaml.SafeLoader("").construct_document(node)
        children: dict[str, Entry] = {}
        item: Entry | None = None
        items = annotation.get("items", {})
        if {"k8s", "additionalProperties"} & annotation.keys() or {"k8s", "type"} & items.keys():
            # The keys below are not the chart's own, and need no comment.
            return Entry(path, text, annotation, value)
        if isinstance(node, yaml.MappingNode):
            children = self._children(path, node)
        elif isinstance(node, yaml.SequenceNode) and node.value:
            if not isinstance(node.value[0], yaml.MappingNode):
                return Entry(path, text, annotation, value)
            item = self._entry(f"{path}[]", node.value[0], "", dict(items))
        return Entry(path, text, annotation, value, children, item)

    def _children(self, path: str, node: yaml.MappingNode) -> dict[str, Entry]:
        children = {}
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            text, annotation = self._comment_above(key.start_mark.line)
            if not text:
                self._uncommented.append(name)
            children[str(key.value)] = self._entry(name, value, text, annotation)
        return children

    def _comment_above(self, line: int) -> tuple[str, dict[str, Any]]:
        comments: list[str] = []
        while line > 0 and (match := _COMMENT.match(self._lines[line - 1])):
            comments.insert(0, match[1].strip())
            line -= 1
        annotation: dict[str, Any] = {}
        words = []
        for comment in comments:
            schema = _SCHEMA.match(comment)
            if schema:
                annotation |= yaml.safe_load(schema[1])
            else:
                words.append(comment)
        return " ".join(words), annotation
