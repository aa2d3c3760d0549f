"""Panels and dashboards of Grafana, as little of their JSON as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

PROMETHEUS: Json = {"type": "prometheus", "uid": "${prometheus}"}
TEMPO: Json = {"type": "tempo", "uid": "${tempo}"}
WIDTH = 24

SELECTED = 'namespace=~"$namespace"'
"""What every query selects; `.*` also matches series that have no namespace, as in a local run."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query in PromQL, and what its series are called."""

    expression: str
    legend: str = ""
    exemplars: bool = False


def rate(metric: str, by: str, *matchers: str) -> str:
    """The sum of a counter's rates."""
    chosen = ",".join([SELECTED, *matchers])
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", *matchers: str) -> str:
    """A quantile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, *matchers)})"


def quantiles(metric: str, *matchers: str) -> list[Query]:
    """The median and the tail of a histogram, with its exemplars."""
    return [
        Query(quantile(share, metric, "", *matchers), f"p{share * 100:g}", exemplars=share == 0.95)
        for share in (0.5, 0.95, 0.99)
    ]


def timeseries(title: str, unit: str, *queries: Query, description: str = "", **size: int) -> Json:
    """Lines over time; `unit` is one of Grafana's: s, reqps, short, percentunit, …"""
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
    """One number, now, over its course."""
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
    """How a histogram of seconds is spread over time."""
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
    """The waterfall of the trace whose id is in the variable `trace_id`."""
    panel = _panel("traces", title, description, {"w": WIDTH, "h": 20, **size})
    panel["datasource"] = TEMPO
    panel["targets"] = [
        {"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": "${trace_id}"}
    ]
    return panel


def found_traces(title: str, query: str, *, description: str = "", **size: int) -> Json:
    """A table of traces that match a query in TraceQL; a click on one shows it."""
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
    """A note in Markdown."""
    panel = _panel("text", "", "", {"w": WIDTH, "h": 3, **size})
    panel["options"] = {"mode": "markdown", "content": content}
    return panel


def row(title: str) -> Json:
    """A heading."""
    return {**_panel("row", title, "", {"w": WIDTH, "h": 1}), "collapsed": False, "panels": []}


def data_source(name: str, kind: str) -> Json:
    """A variable by which a viewer chooses a data source."""
    return {"name": name, "label": name.title(), "type": "datasource", "query": kind}


def values_of(name: str, label: str, metric: str) -> Json:
    """A variable with the values that a label of a metric has; at first, all."""
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
    """A variable that a viewer types."""
    return {"name": name, "label": label, "type": "textbox", "query": ""}


def dashboard(
    uid: str, title: str, description: str, variables: Sequence[Json], panels: Sequence[Json]
) -> Json:
    """Panels from left to right and down, as many a line as fit."""
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
