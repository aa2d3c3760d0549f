"""Reads the chart's alerting rules as Prometheus does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "charts" / "weir" / "alerts").glob("*.yaml"))

_COMPARISON = re.compile(r"^(.*)\s(?:>|<|==)\s[\d.]+\s*$", re.DOTALL)


class Alert(NamedTuple):
    """One alerting rule."""

    name: str
    expression: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def measured(self) -> str:
        """The expression without its final comparison, which has a value in any state."""
        found = _COMPARISON.match(self.expression)
        assert found is not None, f"{self.name} must end in a comparison with a number"
        return found[1]


def alerts() -> list[Alert]:
    """All alerting rules."""
    return [
        Alert(rule["alert"], rule["expr"], rule["labels"], rule["annotations"])
        for file in FILES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
