"""The dashboards are the generated ones, and query existing metrics."""

from __future__ import annotations

import re

import pytest

from scripts.dashboards import __main__ as script
from scripts.dashboards.panels import all_panels
from scripts.metrics_table import FILE
from tests.observability.dashboards import (
    FILES,
    dashboards,
    metric_names,
    panel_queries,
    targets,
)
from tests.observability.rules import alerts
from tests.observability.test_metrics_table import documented


def test_the_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m scripts.dashboards` would not change a file."""
    assert script.main(["--check"]) == 0, capsys.readouterr().err
    assert {file.stem for file in FILES} == {
        "overview",
        "engine",
        "pods",
        "search",
        "trace",
    }


def shown() -> set[str]:
    """All series names of a scrape; a histogram has three."""
    names = set().union(*documented().values())
    return names | {name + end for name in names for end in ("_bucket", "_count", "_sum")}


def test_every_query_and_alert_uses_documented_metrics() -> None:
    """docs/metrics.md lists them; another test compares that table with the code."""
    known = shown()
    for query in panel_queries():
        assert query.metrics, query
        assert query.metrics <= known, query
    for alert in alerts():
        used = metric_names(alert.expression)
        assert used, alert.name
        assert used <= known, alert.name


def labels() -> dict[str, str]:
    """The labels of each metric in docs/metrics.md."""
    rows = re.findall(r"^\| `([\w:]+)` \| \w+ \| ([^|]*) \|", FILE.read_text(), re.MULTILINE)
    return {name + end: found for name, found in rows for end in ("", "_bucket", "_count", "_sum")}


def test_every_query_obeys_the_selected_namespaces_and_models() -> None:
    """Each series of each query, by every label that it has."""
    known = labels()
    for dashboard, panel, target in targets("prometheus"):
        for metric, matchers in re.findall(r"([a-z][\w:]+)\{([^}]*)\}", target["expr"]):
            place = f"{dashboard['title']}, {panel['title']}: {metric}"
            assert 'namespace=~"$namespace"' in matchers, place
            for label in ("model_name", "gen_ai_response_model"):
                if f"`{label}`" in known[metric]:
                    assert f'{label}=~"$model"' in matchers, place
        assert target["expr"].count("[") <= target["expr"].count("{"), "no series is unselected"


def test_legends_name_the_model() -> None:
    """Of queries that have one series for each model, and no legend is unseparated labels."""
    for _, panel, target in targets("prometheus"):
        grouped = ",".join(re.findall(r"by \(([^)]*)\)", target["expr"]))
        for label in ("model_name", "gen_ai_response_model"):
            if label in grouped and panel["type"] != "heatmap":
                assert f"{{{{{label}}}}}" in target["legendFormat"], panel["title"]


def test_every_panel_has_a_description_and_every_dashboard_its_variables() -> None:
    """Rows and texts describe themselves."""
    for dashboard in dashboards():
        names = [variable["name"] for variable in dashboard["templating"]["list"]]
        assert names[:3] == ["prometheus", "namespace", "model"], dashboard["title"]
        for panel in all_panels(dashboard):
            if panel["type"] not in ("row", "text"):
                assert len(panel.get("description", "")) > 10, panel["title"]
        [link] = dashboard["links"]
        assert link["includeVars"]
        assert link["keepTime"]


def test_no_query_asks_for_the_trace_without_an_id() -> None:
    """The default is a query that finds nothing; Tempo answers an empty id with an error."""
    [board] = [each for each in dashboards() if each["uid"] == "weir-trace"]
    [box] = [each for each in board["templating"]["list"] if each["name"] == "trace_id"]
    assert box["query"] == "{ false }"
    for _, panel, target in targets("tempo"):
        if "$trace_id" not in target["query"].replace("{", "").replace("}", ""):
            assert "kind = server" in target["query"], panel["title"]
            assert '=~ "$namespace"' in target["query"]
            assert '=~ "$model"' in target["query"]


def test_links_to_a_trace_keep_the_selection() -> None:
    """Each link in a list of traces."""
    urls = [
        link["url"]
        for dashboard in dashboards()
        for panel in all_panels(dashboard)
        for override in panel.get("fieldConfig", {}).get("overrides", [])
        for each in override["properties"]
        for link in each["value"]
    ]
    assert len(urls) == 3
    for url in urls:
        assert "var-trace_id=${__value.raw}" in url
        for name in ("prometheus", "tempo", "namespace", "model"):
            assert f"${{{name}:queryparam}}" in url
        assert "${__url_time_range}" in url


def test_panels_do_not_overlap_and_ids_are_unique() -> None:
    """No two panels share a cell of the 24 columns."""
    for dashboard in dashboards():
        cells: set[tuple[int, int]] = set()
        for panel in all_panels(dashboard):
            place = {"x": 0, "y": 0, **panel["gridPos"]}
            mine = {
                (place["x"] + column, place["y"] + line)
                for column in range(place["w"])
                for line in range(place["h"])
            }
            assert not mine & cells, panel["title"]
            assert max(column for column, _ in mine) < 24
            cells |= mine
        ids = [panel["id"] for panel in all_panels(dashboard)]
        assert len(ids) == len(set(ids))
