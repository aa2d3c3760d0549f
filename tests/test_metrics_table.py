"""docs/metrics.md says what the services show, all of it and no more."""

from __future__ import annotations

import re

import pytest

from scripts import metrics_table
from scripts.metrics_table import FILE, SERVICES, registered


def documented() -> dict[str, set[str]]:
    """The names in the file, by section."""
    sections = re.split(r"^### ", FILE.read_text(), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: set(re.findall(r"^\| `([\w:]+)` \|", section, re.MULTILINE))
        for section in sections
    }


def test_the_table_is_what_would_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, types, labels and meanings are those of the code."""
    assert metrics_table.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_registers_exactly_what_is_documented(service: str) -> None:
    """Compared both ways, in a process of its own."""
    sections = documented()
    shown = {metric.name for metric in registered(service)}
    assert sections["Every service"] | sections[service] == shown


@pytest.mark.parametrize("service", SERVICES)
def test_every_metric_is_explained_and_labels_are_bounded(service: str) -> None:
    """None without a sentence, and none with a label whose values callers choose."""
    unbounded = {"request_id", "trace_id", "key", "key_name", "query", "path", "user", "prompt"}
    # The Prometheus Operator sets these on every target and would rename ours.
    taken = {"service", "pod", "namespace", "job", "instance", "container", "endpoint", "node"}
    for metric in registered(service):
        assert metric.meaning, metric.name
        assert not set(metric.labels) & (unbounded | taken), metric.name
        assert metric.type != "counter" or metric.name.endswith("_total")
