"""The alerts: Prometheus's own tool reads them, each fires when it should, each has a runbook."""

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
    """Its output; skips where it is not installed."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not here: apt-get install prometheus")
    done = subprocess.run(
        [tool, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def test_prometheus_reads_the_rules() -> None:
    """Expressions, templates and durations are right."""
    assert promtool("check", "rules", *FILES).count("SUCCESS") == len(FILES) >= 4


def test_each_alert_fires_for_its_trouble_and_none_when_all_is_well() -> None:
    """The cases are in alerts_test.yaml."""
    assert "SUCCESS" in promtool("test", "rules", CASES)


def test_no_alert_is_without_a_case() -> None:
    """Each has one in which it fires."""
    cases = yaml.safe_load(CASES.read_text())["tests"]
    firing = {
        test["alertname"]
        for case in cases
        for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert firing == {alert.name for alert in alerts()}


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    """What to look at and what to do, and the index lists them."""
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
