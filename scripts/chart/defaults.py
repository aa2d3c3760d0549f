"""The defaults of a chart's values in a flat file, which the templates complete the values from.

Helm takes the old release's defaults for `helm upgrade --reuse-values`, and removes keys that are
null, so a template cannot rely on values.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from scripts.chart.values import Entry

HEADER = "# Generated from values.yaml by `make chart`: the default of each value by its path.\n"


def build_defaults(root: Entry) -> str:
    """YAML with a line for each value: its path and its default as JSON."""
    lines = [f"{entry.path}: {json.dumps(entry.value)}\n" for entry in _leaves(root)]
    return HEADER + "".join(lines)


def _leaves(entry: Entry) -> Iterator[Entry]:
    """The values; free-form maps, lists and overrides of other sections are one value each."""
    for child in entry.children.values():
        if child.children and "like" not in child.annotation:
            yield from _leaves(child)
        else:
            yield child
