"""Reads the chart's dashboards as Grafana does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from scripts.dashboards.panels import Json, all_panels

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "charts" / "weir" / "dashboards").glob("*.json"))

_VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "5m",
    "$namespace": "weir|",
    "$model": "demo|",
    "$pod": ".*",
}
_SERVICES = "gateway|gen_ai|mesh|orchestrator|tokenizer|vllm|inference|process"
_METRIC = re.compile(rf"\b(?:{_SERVICES})[\w:]+(?=[{{\[)])")
_GROUPING = re.compile(r"\b(?:by|on|without|group_left) \([^)]*\)")


def metric_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression queries."""
    return set(_METRIC.findall(_GROUPING.sub("", expression)))


class PanelQuery(NamedTuple):
    """A Prometheus query of a panel, with the default value of each variable."""

    dashboard: str
    panel: str
    expression: str

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics in the query."""
        return metric_names(self.expression)


def dashboards() -> list[Json]:
    """All dashboards."""
    return [json.loads(file.read_text()) for file in FILES]


def targets(kind: str) -> list[tuple[Json, Json, Json]]:
    """The queries of all panels for data sources of a kind: dashboard, panel, target."""
    return [
        (dashboard, panel, target)
        for dashboard in dashboards()
        for panel in all_panels(dashboard)
        for target in panel.get("targets", [])
        if target["datasource"]["type"] == kind
    ]


def panel_queries() -> list[PanelQuery]:
    """The Prometheus queries of all panels of all dashboards."""
    return [
        PanelQuery(dashboard["title"], panel["title"], _filled_in(target["expr"]))
        for dashboard, panel, target in targets("prometheus")
    ]


def _filled_in(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"an unknown variable in {expression}"
    return expression
