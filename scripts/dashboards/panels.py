"""Functions that build the JSON of Grafana's dashboards and panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

PROMETHEUS: Json = {"type": "prometheus", "uid": "${prometheus}"}
TEMPO: Json = {"type": "tempo", "uid": "${tempo}"}
WIDTH = 24

SELECTED = 'namespace=~"$namespace"'
"""Matcher of every query. `.*` also matches series without a namespace, as in a local run."""


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL query, and the legend of its series."""

    expression: str
    legend: str = ""
    exemplars: bool = False


def rate(metric: str, by: str, *matchers: str) -> str:
    """PromQL: a counter's rate, summed by labels."""
    chosen = ",".join([SELECTED, *matchers])
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", *matchers: str) -> str:
    """PromQL: a quantile of a histogram, by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, *matchers)})"


def quantiles(metric: str, *matchers: str) -> list[Query]:
    """p50, p95 (with exemplars) and p99 of a histogram."""
    return [
        Query(quantile(share, metric, "", *matchers), f"p{share * 100:g}", exemplars=share == 0.95)
        for share in (0.5, 0.95, 0.99)
    ]


def timeseries(title: str, unit: str, *queries: Query, description: str = "", **size: int) -> Json:
    """A line chart over time. `unit` is a Grafana unit: s, reqps, short, percentunit, …"""
    panel = _panel("timeseries", title, description, size)
    panel["datasource"] = PROMETHEUS
    panel["targets"] = _targets(queries)
    panel["fieldConfig"] = {
        "defaults": {
            "unit": unit,
            "min": 0,
            "custom": {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never"},
        },
        "overrides": [],
    }
    panel["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def stat(title: str, unit: str, query: Query, *, description: str = "", **size: int) -> Json:
    """The latest value as a number, on a sparkline."""
    panel = _panel("stat", title, description, {"w": 4, "h": 4, **size})
    panel["datasource"] = PROMETHEUS
    panel["targets"] = _targets([query])
    panel["fieldConfig"] = {"defaults": {"unit": unit, "min": 0}, "overrides": []}
    panel["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "graphMode": "area",
        "colorMode": "value",
    }
    return panel


def heatmap(title: str, metric: str, *, description: str = "", **size: int) -> Json:
    """The distribution of a histogram of seconds over time."""
    panel = _panel("heatmap", title, description, size)
    panel["datasource"] = PROMETHEUS
    panel["targets"] = _targets([Query(rate(f"{metric}_bucket", "le"), "{{le}}", exemplars=True)])
    panel["targets"][0]["format"] = "heatmap"
    panel["options"] = {
        "calculate": False,
        "yAxis": {"unit": "s"},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 32},
        "exemplars": {"color": "rgba(31,120,193,0.9)"},
        "cellGap": 1,
    }
    return panel


def traces(title: str, *, description: str = "", **size: int) -> Json:
    """The waterfall of the trace in the dashboard variable `trace_id`."""
    panel = _panel("traces", title, description, {"w": WIDTH, "h": 20, **size})
    panel["datasource"] = TEMPO
    panel["targets"] = [
        {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": "${trace_id}"}
    ]
    return panel


def found_traces(title: str, query: str, *, description: str = "", **size: int) -> Json:
    """A table of the traces that match a TraceQL query, with links to show each."""
    panel = _panel("table", title, description, {"w": WIDTH, "h": 9, **size})
    panel["datasource"] = TEMPO
    target = {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": query}
    panel["targets"] = [{**target, "limit": 20, "tableType": "traces"}]
    show = {
        "title": "Show below",
        "url": "/d/weir-trace?${__url_time_range}&var-trace_id=${__value.raw}",
    }
    by_id = {"id": "byName", "options": "traceID"}
    panel["fieldConfig"] = {
        "defaults": {},
        "overrides": [{"matcher": by_id, "properties": [{"id": "links", "value": [show]}]}],
    }
    return panel


def text(content: str, **size: int) -> Json:
    """A Markdown panel."""
    panel = _panel("text", "", "", {"w": WIDTH, "h": 3, **size})
    panel["options"] = {"mode": "markdown", "content": content}
    return panel


def row(title: str) -> Json:
    """A row: the heading of the panels below it."""
    return {**_panel("row", title, "", {"w": WIDTH, "h": 1}), "collapsed": False, "panels": []}


def data_source(name: str, kind: str) -> Json:
    """A dashboard variable that selects a data source."""
    return {"name": name, "label": name.title(), "type": "datasource", "query": kind}


def values_of(name: str, label: str, metric: str) -> Json:
    """A dashboard variable with the values of a metric's label; default: all."""
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "label": name.title(),
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def text_box(name: str, label: str) -> Json:
    """A dashboard variable with a free text."""
    return {"name": name, "label": label, "type": "textbox", "query": ""}


def dashboard(
    uid: str, title: str, description: str, variables: Sequence[Json], panels: Sequence[Json]
) -> Json:
    """A dashboard with its panels placed from left to right, and from top to bottom."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["weir"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(variables)},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "Weir",
                "tags": ["weir"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": _placed(panels),
    }


def _panel(kind: str, title: str, description: str, size: dict[str, int]) -> Json:
    panel: Json = {"type": kind, "title": title, "gridPos": {"w": 8, "h": 8, **size}}
    return {**panel, "description": description} if description else panel


def _targets(queries: Sequence[Query]) -> list[Json]:
    return [
        {
            "refId": chr(ord("A") + number),
            "datasource": PROMETHEUS,
            "expr": query.expression,
            "legendFormat": query.legend or "__auto",
            "exemplar": query.exemplars,
        }
        for number, query in enumerate(queries)
    ]


def _placed(panels: Sequence[Json]) -> list[Json]:
    x = y = height = 0
    placed = []
    for number, panel in enumerate(panels, 1):
        size = panel["gridPos"]
        if x + size["w"] > WIDTH:
            x, y, height = 0, y + height, 0
        placed.append({"id": number, **panel, "gridPos": {**size, "x": x, "y": y}})
        x, height = x + size["w"], max(height, size["h"])
    return placed
