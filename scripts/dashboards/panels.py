"""Panels and variables of the dashboards, built with Grafana's Foundation SDK.

The SDK's types check the names and values of all options. Every panel has a description.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import (
    dashboard,
    loki,
    prometheus,
    tempo,
)
from grafana_foundation_sdk.builders import (
    heatmap as heatmaps,
)
from grafana_foundation_sdk.builders import (
    logs as log_panels,
)
from grafana_foundation_sdk.builders import (
    stat as stats,
)
from grafana_foundation_sdk.builders import (
    table as tables,
)
from grafana_foundation_sdk.builders import (
    text as texts,
)
from grafana_foundation_sdk.builders import (
    timeseries as charts,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import MetricsQueryType, SearchTableType
from grafana_foundation_sdk.models.text import TextMode

from scripts.dashboards.queries import Query, rate

Json: TypeAlias = dict[str, Any]
Panel: TypeAlias = Builder[models.Panel]
Item: TypeAlias = "Panel | dashboard.Row"
Variable: TypeAlias = Builder[models.VariableModel]

PROMETHEUS = models.DataSourceRef("prometheus", "${prometheus}")
TEMPO = models.DataSourceRef("tempo", "${tempo}")
LOKI = models.DataSourceRef("loki", "${loki}")
WIDTH = 24

KEPT_VARIABLES = "${__url_time_range}&" + "&".join(
    f"${{{name}:queryparam}}" for name in ("prometheus", "tempo", "loki", "namespace", "model")
)
"""Parameters of a link that keep the time range, the data sources and the selection."""


def timeseries(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    limit: float | None = None,
    stacked: bool = False,
    w: int = 8,
    h: int = 8,
) -> Panel:
    """A line chart over time. `unit` is a Grafana unit: s, reqps, short, percentunit, …

    `limit`: the value above which something is wrong, drawn as a dashed line.
    """
    panel = (
        charts.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(60 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(
            options.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .span(w)
        .height(h)
        .targets(list(_targets(queries)))
    )
    if stacked:
        panel = panel.stacking(options.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if limit is not None:
        style = options.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(limit)).thresholds_style(style)
    return panel


def stat(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    limit: float | None = None,
    least: float | None = None,
    w: int = 4,
) -> Panel:
    """The latest value as a number, on a sparkline; red from `limit`, or below `least`."""
    panel = (
        stats.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .graph_mode(common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(w)
        .height(4)
        .targets(list(_targets([query])))
    )
    if limit is not None:
        panel = panel.thresholds(_thresholds(limit))
    elif least is not None:
        panel = panel.thresholds(_thresholds(least, below="red", above="green"))
    return panel


def heatmap(title: str, description: str, histogram: str, *, w: int = 8) -> Panel:
    """The distribution of a histogram of seconds over time."""
    query = Query(rate(f"{histogram}_bucket", "le"), "{{le}}", exemplars=True)
    [target] = _targets([query])
    colors = (
        heatmaps.HeatmapColorOptions()
        .mode(heatmap_models.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .steps(32)
    )
    return (
        heatmaps.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .calculate(False)
        .y_axis(heatmaps.YAxisConfig().unit("s"))
        .color(colors)
        .exemplars_color("rgba(31,120,193,0.9)")
        .cell_gap(1)
        .span(w)
        .height(8)
        .targets([target.format(PromQueryFormat.HEATMAP)])
    )


def trace_metric(
    title: str, description: str, unit: str, query: str, *, stacked: bool = False, w: int = 12
) -> Panel:
    """A line chart of a TraceQL metrics query."""
    panel = (
        charts.Panel()
        .title(title)
        .description(description)
        .datasource(TEMPO)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(60 if stacked else 8)
        .legend(_legend())
        .span(w)
        .height(8)
        .targets(
            [
                tempo.TempoQuery()
                .ref_id("A")
                .datasource(TEMPO)
                .query_type("traceql")
                .query(query)
                .metrics_query_type(MetricsQueryType.RANGE)
                .exemplars(20)
            ]
        )
    )
    if stacked:
        panel = panel.stacking(options.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    return panel


def trace(title: str, description: str) -> Panel:
    """The waterfall of the trace in the dashboard variable `trace_id`."""
    query = tempo.TempoQuery().ref_id("A").datasource(TEMPO)
    return (
        dashboard.Panel()
        .type("traces")
        .title(title)
        .description(description)
        .datasource(TEMPO)
        .span(WIDTH)
        .height(20)
        .targets([query.query_type("traceql").query("${trace_id}")])
    )


def found_traces(title: str, description: str, query: str, *, w: int = WIDTH) -> Panel:
    """A table of the traces that match a TraceQL query, with links to show each."""
    target = tempo.TempoQuery().ref_id("A").datasource(TEMPO).query_type("traceql").query(query)
    show = {
        "title": "Show below",
        "url": f"/d/weir-trace?{KEPT_VARIABLES}&var-trace_id=${{__value.raw}}",
    }
    return (
        tables.Panel()
        .title(title)
        .description(description)
        .datasource(TEMPO)
        .span(w)
        .height(9)
        .targets([target.limit(20).table_type(SearchTableType.TRACES)])
        .override_by_name("traceID", [models.DynamicConfigValue("links", [show])])
    )


def table(title: str, description: str, query: Query, *, w: int = 8) -> Panel:
    """The latest value of each series, with its labels as columns."""
    [target] = _targets([query])
    return (
        tables.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .span(w)
        .height(8)
        .targets([target.instant().format(PromQueryFormat.TABLE)])
        .with_transformation(
            models.DataTransformerConfig("organize", options={"excludeByName": {"Time": True}})
        )
    )


def logs(title: str, description: str, query: str) -> Panel:
    """The log lines of a LogQL query."""
    return (
        log_panels.Panel()
        .title(title)
        .description(description)
        .datasource(LOKI)
        .show_time(True)
        .enable_log_details(True)
        .span(WIDTH)
        .height(10)
        .targets([loki.Dataquery().ref_id("A").datasource(LOKI).expr(query)])
    )


def text(content: str) -> Panel:
    """A Markdown panel."""
    return texts.Panel().mode(TextMode.MARKDOWN).content(content).span(WIDTH).height(3)


def row(title: str, *, repeat: str = "", panels: Sequence[Panel] = ()) -> dashboard.Row:
    """The heading of the panels below it.

    With `panels` it is closed at first, and then asks for no data; `repeat` makes one row for each
    value of a variable.
    """
    made = dashboard.Row(title)
    if repeat:
        made = made.repeat(repeat)
    for panel in panels:
        made = made.with_panel(panel)
    return made


def data_source(name: str, kind: str) -> Variable:
    """A dashboard variable that selects a data source."""
    return dashboard.DatasourceVariable(name).label(name.title()).type(kind)


def values_of(name: str, label: str, series: str) -> Variable:
    """A dashboard variable with the values of a label; default: all."""
    return (
        dashboard.QueryVariable(name)
        .label(name.title())
        .datasource(PROMETHEUS)
        .query({"query": f"label_values({series}, {label})", "refId": name})
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(models.VariableOption(text="All", value="$__all"))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def selection() -> list[Variable]:
    """The variables that every dashboard has: data source, namespaces and models."""
    return [
        data_source("prometheus", "prometheus"),
        values_of("namespace", "namespace", "mesh_build_info"),
        values_of("model", "model_name", 'vllm:num_requests_running{namespace=~"$namespace"}'),
    ]


def text_box(name: str, label: str, default: str) -> Variable:
    """A dashboard variable with a free text."""
    return dashboard.TextBoxVariable(name).label(label).default_value(default)


def build(
    uid: str, title: str, description: str, variables: Sequence[Variable], items: Sequence[Item]
) -> Json:
    """A dashboard with its panels placed from left to right, and from top to bottom."""
    links = (
        dashboard.DashboardLink("Weir")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["weir"])
        .include_vars(True)
        .keep_time(True)
    )
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["weir"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .variables(list(variables))
        .links([links])
    )
    for item in items:
        made = made.with_row(item) if isinstance(item, dashboard.Row) else made.with_panel(item)
    found: Json = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel in enumerate(all_panels(found), 1):
        panel["id"] = number
    return found


def all_panels(found: Json) -> list[Json]:
    """The panels of a dashboard, rows and the panels in them included."""
    panels: list[Json] = []
    for panel in found["panels"]:
        panels += [panel, *panel.get("panels", [])]
    return panels


def _legend() -> options.VizLegendOptions:
    return (
        options.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _thresholds(
    limit: float, *, below: str = "green", above: str = "red"
) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None, color=below), models.Threshold(value=limit, color=above)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _targets(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .ref_id(chr(ord("A") + number))
        .datasource(PROMETHEUS)
        .expr(query.expression)
        .legend_format(query.legend or "__auto")
        .exemplar(query.exemplars)
        for number, query in enumerate(queries)
    ]
