"""Alerts are valid Prometheus rules, fire for their fault only, and have a runbook each."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.observability.rules import FILES, ROOT, alerts

CASES = Path(__file__).parent / "alerts_test.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"
RUNBOOK_URL = "https://github.com/weir-llm/weir/blob/main/docs/runbooks/"


def promtool(*arguments: object) -> str:
    """Returns promtool's output; skips the test where promtool is not installed."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(
        [tool, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def test_prometheus_reads_the_rules() -> None:
    """promtool accepts the expressions, templates and durations."""
    assert promtool("check", "rules", *FILES).count("SUCCESS") == len(FILES) >= 4


def test_each_alert_fires_for_its_fault_and_none_in_normal_operation() -> None:
    """promtool runs the cases of alerts_test.yaml."""
    assert "SUCCESS" in promtool("test", "rules", CASES)


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    """alerts_test.yaml names every alert with expected firing alerts."""
    cases = yaml.safe_load(CASES.read_text())["tests"]
    firing = {
        test["alertname"]
        for case in cases
        for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert firing == {alert.name for alert in alerts()}


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    """A runbook has the sections Symptom, What to look at and What to do; the index lists it."""
    linked = {alert.annotations["runbook_url"].removeprefix(RUNBOOK_URL) for alert in alerts()}
    there = {path.name for path in RUNBOOKS.glob("*.md")} - {"README.md"}
    assert linked == there
    index = (RUNBOOKS / "README.md").read_text()
    for alert in alerts():
        assert alert.labels["severity"] in {"critical", "warning"}
        name = alert.annotations["runbook_url"].removeprefix(RUNBOOK_URL)
        assert f"| {alert.name} | " in index
        assert f"]({name})" in index
        text = (RUNBOOKS / name).read_text()
        assert all(f"## {part}" in text for part in ("Symptom", "What to look at", "What to do"))
