"""A chart's README: README.md.in with tables of all values."""

from __future__ import annotations

import json
from collections.abc import Iterator

from scripts.chart.values import Entry

PLACE = "<!-- values -->"
"""Placeholder of the tables in the template."""


def build_readme(root: Entry, template: str) -> str:
    """The README's text, with a section for each top-level key of the values."""
    sections = "\n\n".join(_section(entry) for entry in root.children.values())
    return template.replace(PLACE, sections)


def _section(entry: Entry) -> str:
    lines = [f"### {entry.path}", "", entry.description]
    rows = list(_rows(entry))
    if rows != [entry]:
        lines += ["", "| Key | Default | Description |", "|---|---|---|"]
        lines += [_row(row) for row in rows]
    else:
        lines += ["", f"Default: {_default(entry)}"]
    return "\n".join(lines)


def _rows(entry: Entry) -> Iterator[Entry]:
    """The leaf keys."""
    below = entry.item.children if entry.item is not None else entry.children
    if not below or "like" in entry.annotation:
        yield entry
        return
    for child in below.values():
        yield from _rows(child)


def _row(entry: Entry) -> str:
    description = entry.description.replace("|", "\\|")
    choices = entry.annotation.get("enum")
    if choices and not all(str(choice) in description for choice in choices):
        description += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    if "like" in entry.annotation:
        description += f" The same keys as `{entry.annotation['like']}`."
    return f"| `{entry.path}` | {_default(entry)} | {description} |"


def _default(entry: Entry) -> str:
    if entry.value == "":
        return "empty"
    text = json.dumps(entry.value, ensure_ascii=False).replace("|", "\\|")
    return f"`{text}`"
