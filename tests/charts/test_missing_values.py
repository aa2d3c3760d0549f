"""Keys that are missing, because they were set to null or come from an older release."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
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


@pytest.mark.parametrize(("depth", "major"), [(1, 3), (1, 4), (2, 4), (3, 4), (4, 3), (4, 4)])
def test_missing_keys_take_their_defaults(depth: int, major: int) -> None:
    """Sections and single values that are null give the manifests of the defaults."""
    paths = [each.path for each in entries(CHART_VALUES, depth)]
    usual = render("minimal", major=major)
    assert render(values=nulls(paths), major=major).manifests == usual.manifests


def test_missing_overrides_take_the_defaults() -> None:
    """The sections that override others, such as gateway.pod, may be null."""
    paths = [each.path for each in CHART_VALUES.walk() if "like" in each.annotation]
    paths = [path for path in paths if "[]" not in path]
    assert len(paths) >= 4
    assert render(values=nulls(paths)).manifests == render("minimal").manifests


def test_every_template_completes_the_values() -> None:
    """Helm renders templates in no fixed order, so each starts with the completion."""
    first = '{{- include "weir.complete" . -}}\n'
    templates = [*(CHART / "templates").rglob("*.yaml"), CHART / "templates" / "NOTES.txt"]
    assert len(templates) > 40
    assert [path.name for path in templates if not path.read_text().startswith(first)] == []


@pytest.fixture(scope="module")
def old_defaults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with the default values of 0.1.0, as Helm renders it with --reuse-values."""
    chart = tmp_path_factory.mktemp("reused") / "weir"
    shutil.copytree(CHART, chart)
    shutil.copy(Path(__file__).parent / "values-0.1.0.yaml", chart / "values.yaml")
    return chart


@pytest.mark.parametrize(("name", "major"), [("gpu", 3), ("gpu", 4), ("multi-model", 4)])
def test_values_of_the_previous_chart_can_be_reused(
    old_defaults: Path, name: str, major: int
) -> None:
    """With --reuse-values, keys that are new since 0.1.0 have their defaults."""
    previous = yaml.safe_load((old_defaults / "values.yaml").read_text())
    known = {entry.path for entry in read_values(CHART / "values.yaml").walk()}
    assert set(previous) < known
    own = yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text())
    reused = render(values=own, chart=old_defaults, major=major)
    assert reused.manifests == render(values=merged(previous, own), major=major).manifests


def merged(into: Values, values: Values) -> Values:
    """Helm's merge of values: maps key by key, everything else replaced."""
    result = dict(into)
    for key, value in values.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both else value
    return result


@pytest.mark.parametrize("section", ["hub", "pvc", "inference", "source", "tokenizer"])
def test_null_in_a_model_is_refused_by_name(section: str) -> None:
    """Helm does not remove null from lists, so it has the wrong type."""
    with pytest.raises(RenderError, match=rf"models/0/{section}': got null, want"):
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
    assert "missing properties" in done.stderr
    assert [key for key in values if f"'{key}'" not in done.stderr] == []
