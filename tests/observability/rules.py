"""Reads the chart's alerting rules as Prometheus does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "charts" / "weir" / "alerts").glob("*.yaml"))

_COMPARISON = re.compile(r"^(.*)\s(?:>|<|==)\s[\d.]+\s*$", re.DOTALL)
_AND = re.compile(r"^and ", re.MULTILINE)


class Alert(NamedTuple):
    """One alerting rule."""

    name: str
    expression: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def measured(self) -> list[str]:
        """The compared expressions, which have values in any state."""
        found = [_COMPARISON.match(part) for part in _AND.split(self.expression)]
        assert all(found), f"{self.name} must compare with numbers"
        return [each[1] for each in found if each is not None]


def alerts() -> list[Alert]:
    """All alerting rules."""
    return [
        Alert(rule["alert"], rule["expr"], rule["labels"], rule["annotations"])
        for file in FILES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
