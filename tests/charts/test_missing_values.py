"""Keys that are missing, because they were set to null or come from an older release."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from scripts.chart.values import Entry, read_values
from scripts.find_helm import find_helm
from tests.charts.rendered import CHART, ROOT, RenderError, render

Values = dict[str, Any]

OBSERVABILITY = ROOT / "charts" / "observability"


def entries(root: Entry, depth: int) -> Iterator[Entry]:
    """The keys at this depth that have no overrides below them; top-level keys have depth 1."""
    for entry in root.children.values():
        if depth == 1 and "like" not in entry.annotation:
            yield entry
        elif depth > 1 and "like" not in entry.annotation:
            yield from entries(entry, depth - 1)


def nulls(paths: list[str]) -> Values:
    """Values that set each of these paths to null."""
    values: Values = {}
    for path in paths:
        *parents, last = path.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = None
    return values


CHART_VALUES = read_values(CHART / "values.yaml")
DEPTHS = range(1, 5)


def test_every_key_of_the_chart_is_covered() -> None:
    """The depths below contain every section and every single value."""
    paths = [each.path for depth in DEPTHS for each in entries(CHART_VALUES, depth)]
    sections = [each for depth in DEPTHS for each in entries(CHART_VALUES, depth) if each.children]
    assert len(set(paths)) > 200
    assert len(sections) >= 30
    assert list(entries(CHART_VALUES, DEPTHS[-1] + 1)) == []


@pytest.mark.parametrize("depth", DEPTHS)
def test_each_missing_key_is_refused_by_name(depth: int) -> None:
    """Helm's message names the section and the key; no template fails."""
    paths = [each.path for each in entries(CHART_VALUES, depth)]
    with pytest.raises(RenderError) as failure:
        render(values=nulls(paths))
    message = str(failure.value)
    for path in paths:
        section, _, key = path.rpartition(".")
        assert f"- {section or '(root)'}: {key} is required" in message
    assert "nil pointer" not in message


def test_missing_overrides_take_the_defaults() -> None:
    """The sections that override others, such as gateway.pod, may be null."""
    paths = [each.path for each in CHART_VALUES.walk() if "like" in each.annotation]
    paths = [path for path in paths if "[]" not in path]
    assert len(paths) == 4
    usual = render(values={"inference": {"pod": {"tmpSize": "256Mi"}}})
    assert render(values=nulls(paths)).manifests == usual.manifests


@pytest.mark.parametrize("section", ["hub", "pvc", "inference", "source", "tokenizer"])
def test_null_in_a_model_is_refused_by_name(section: str) -> None:
    """Helm does not remove null from lists, so it has the wrong type."""
    with pytest.raises(RenderError, match=rf"models\.0\.{section}: Invalid type"):
        render(values={"models": [{"name": "a", section: None}]})


def test_parts_of_kubernetes_objects_may_be_removed() -> None:
    """null removes a memory limit, which is no section of the chart."""
    released = render(values={"gateway": {"resources": {"limits": None}}})
    (container,) = released.deployment("gateway")["spec"]["template"]["spec"]["containers"]
    assert "limits" not in container["resources"]


def test_the_observability_chart_refuses_missing_keys_too() -> None:
    """Each section, in one message."""
    values = yaml.safe_load((OBSERVABILITY / "values.yaml").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict.fromkeys(values), file)
        command = [str(find_helm()), "template", "o", str(OBSERVABILITY), "--values", file.name]
        command += ["--kube-version", "1.36.0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    for key in values:
        assert f"- (root): {key} is required" in done.stderr


HUB = {"name": "m", "source": "hub", "hub": {"id": "a/b"}}


def test_every_container_can_satisfy_a_quota() -> None:
    """A namespace with a quota on limits admits a pod only if each container sets its limits."""
    wanted = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}
    resources = {"resources": wanted}
    services = dict.fromkeys(("gateway", "orchestrator", "tokenizer", "inference"), resources)
    released = render(
        values={**services, "modelDownload": resources, "tests": resources, "models": [HUB]}
    )
    containers = dict(released.containers())
    assert {"weir-inference-m/download", "weir-tokenizer-m/download", "weir-test/test"} <= set(
        containers
    )
    assert all(each["resources"] == wanted for each in containers.values())
