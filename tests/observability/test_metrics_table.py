"""docs/metrics.md lists exactly the metrics that the services export."""

from __future__ import annotations

import re

import pytest

from scripts import metrics_table
from scripts.metrics_table import FILE, SERVICES, registered


def documented() -> dict[str, set[str]]:
    """The metric names in the file, by section."""
    sections = re.split(r"^### ", FILE.read_text(), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: set(re.findall(r"^\| `([\w:]+)` \|", section, re.MULTILINE))
        for section in sections
    }


def test_the_table_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, types, labels and descriptions equal those in the code."""
    assert metrics_table.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_registers_exactly_what_is_documented(service: str) -> None:
    """Compared in both directions, in a separate process."""
    sections = documented()
    shown = {metric.name for metric in registered(service)}
    assert sections["Every service"] | sections[service] == shown


@pytest.mark.parametrize("service", SERVICES)
def test_every_metric_has_a_description_and_bounded_labels(service: str) -> None:
    """No metric has a label whose values clients choose."""
    unbounded = {"request_id", "trace_id", "key", "key_name", "query", "path", "user", "prompt"}
    # The Prometheus Operator sets these labels on every target and would rename ours.
    taken = {"service", "pod", "namespace", "job", "instance", "container", "endpoint", "node"}
    for metric in registered(service):
        assert metric.meaning, metric.name
        assert not set(metric.labels) & (unbounded | taken), metric.name
        assert metric.type != "counter" or metric.name.endswith("_total")
