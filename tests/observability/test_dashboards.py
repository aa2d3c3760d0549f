"""The dashboards are the generated ones, and query existing metrics."""

from __future__ import annotations

import json

import pytest

from scripts.dashboards import __main__ as script
from tests.observability.dashboards import FILES, metric_names, panel_queries
from tests.observability.rules import alerts
from tests.observability.test_metrics_table import documented


def test_the_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m scripts.dashboards` would not change a file."""
    assert script.main(["--check"]) == 0, capsys.readouterr().err
    assert {file.stem for file in FILES} == {"overview", "engine", "search", "trace"}


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


def test_panels_do_not_overlap_and_ids_are_unique() -> None:
    """No two panels share a cell of the 24 columns."""
    for file in FILES:
        dashboard = json.loads(file.read_text())
        cells: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            mine = {
                (place["x"] + column, place["y"] + line)
                for column in range(place["w"])
                for line in range(place["h"])
            }
            assert not mine & cells, panel["title"]
            assert max(column for column, _ in mine) < 24
            cells |= mine
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids))
