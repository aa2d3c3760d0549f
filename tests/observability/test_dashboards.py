"""The dashboards are what the script writes, and ask for metrics that there are."""

from __future__ import annotations

import json

import pytest

from scripts.dashboards import __main__ as script
from tests.observability.dashboards import FILES, metric_names, panel_queries
from tests.observability.rules import alerts
from tests.test_metrics_table import documented


def test_the_files_are_what_would_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """No one has edited them by hand."""
    assert script.main(["--check"]) == 0, capsys.readouterr().err
    assert {file.stem for file in FILES} == {"overview", "engine", "search", "trace"}


def shown() -> set[str]:
    """Every name that a scrape may have: histograms have three."""
    names = set().union(*documented().values())
    return names | {name + end for name in names for end in ("_bucket", "_count", "_sum")}


def test_every_query_and_alert_asks_for_metrics_that_there_are() -> None:
    """By the table of docs/metrics.md, which is held to the code."""
    known = shown()
    for query in panel_queries():
        assert query.metrics, query
        assert query.metrics <= known, query
    for alert in alerts():
        used = metric_names(alert.expression)
        assert used, alert.name
        assert used <= known, alert.name


def test_panels_do_not_overlap_and_ids_are_unique() -> None:
    """Each has a place of its own within the 24 columns."""
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
