"""Renders the chart with helm, and gives tests access to the manifests."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from scripts.find_helm import find_helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "weir"
VALUE_SETS = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
NAMESPACE = "prod"
COMPONENTS = ("gateway", "orchestrator", "tokenizer", "inference")

Manifest = dict[str, Any]


class RenderError(Exception):
    """helm refused the values; the message is helm's."""


@dataclass(frozen=True)
class Release:
    """The manifests of one rendered release."""

    manifests: tuple[Manifest, ...]

    def of_kind(self, kind: str) -> list[Manifest]:
        """All objects of a kind."""
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def named(self, kind: str, name: str) -> Manifest:
        """The one object of this kind and name."""
        (found,) = [each for each in self.of_kind(kind) if each["metadata"]["name"] == name]
        return found

    def component(self, kind: str, component: str) -> list[Manifest]:
        """All objects of a kind that belong to a component."""
        label = "app.kubernetes.io/component"
        return [m for m in self.of_kind(kind) if m["metadata"]["labels"].get(label) == component]

    def deployment(self, component: str) -> Manifest:
        """The one Deployment of a component."""
        (found,) = self.component("Deployment", component)
        return found

    @cached_property
    def pods(self) -> list[tuple[str, Manifest]]:
        """Name and template of every pod of Deployments, LeaderWorkerSets and tests."""
        found = [(m["metadata"]["name"], m["spec"]["template"]) for m in self.of_kind("Deployment")]
        for each in self.of_kind("LeaderWorkerSet"):
            group, name = each["spec"]["leaderWorkerTemplate"], each["metadata"]["name"]
            found += [(f"{name}-{role}", group[f"{role}Template"]) for role in ("leader", "worker")]
        return found + [(m["metadata"]["name"], m) for m in self.of_kind("Pod")]

    def containers(self) -> Iterator[tuple[str, Manifest]]:
        """Every container, including init containers, with a name for messages."""
        for name, pod in self.pods:
            for key in ("initContainers", "containers"):
                for container in pod["spec"].get(key, ()):
                    yield f"{name}/{container['name']}", container


def environment(container: Manifest) -> dict[str, str]:
    """The variables with a literal value."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def render(
    *value_sets: str,
    values: Mapping[str, Any] | None = None,
    major: int | None = None,
    chart: Path = CHART,
    api_versions: tuple[str, ...] = (),
) -> Release:
    """Renders the chart with value sets of ci/, then `values`. Raises RenderError.

    `major` selects the version of Helm, `chart` another folder, `api_versions` adds to those of the
    cluster.
    """
    return _render(value_sets, yaml.safe_dump(dict(values or {})), major, chart, api_versions)


@cache
def _render(
    value_sets: tuple[str, ...],
    values: str,
    major: int | None,
    chart: Path,
    api_versions: tuple[str, ...],
) -> Release:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(values)
        file.flush()
        files = [*(str(CHART / "ci" / f"{name}.yaml") for name in value_sets), file.name]
        helm = str(find_helm(major=major))
        command = [helm, "template", "weir", str(chart), "--namespace", NAMESPACE]
        command += ["--kube-version", "1.36.0", *(f"--values={each}" for each in files)]
        command += [f"--api-versions={each}" for each in api_versions]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RenderError(done.stderr)
    documents = yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return Release(tuple(document for document in documents if document))
