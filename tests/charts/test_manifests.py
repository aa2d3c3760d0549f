"""With every value set the manifests are valid, pinned and restricted."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scripts.find_helm import find_helm
from tests.charts.rendered import CHART, Manifest, Release, render

SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema"
NEWEST = sorted(
    (each.name for each in SCHEMAS.iterdir() if each.name.endswith("-local-strict")),
    key=lambda name: int(name.split(".")[1]),
)[-3:]
"""The strict schemas of the three newest minor versions of Kubernetes."""

CUSTOM_RESOURCES = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text())
"""Schemas of the specs of custom resources, by API version and kind."""

SETS = {
    "minimal": {"Deployment": 4, "Service": 5, "NetworkPolicy": 6, "Pod": 1},
    "multi-model": {"Deployment": 7, "PersistentVolumeClaim": 2},
    "keda": {"ScaledObject": 4},
    "gpu": {"HorizontalPodAutoscaler": 3, "ServiceMonitor": 1, "PriorityClass": 1},
    "tls": {"Certificate": 4, "Ingress": 1, "HTTPRoute": 1},
    "vllm": {"Deployment": 7, "PodMonitor": 1, "PersistentVolumeClaim": 1},
    "lws": {"LeaderWorkerSet": 1, "Deployment": 3},
    "inferencepool": {"InferencePool": 2},
}


@cache
def validator(version: str, file: str) -> Any:
    """The validator of one kind."""
    schema = json.loads((SCHEMAS / version / file).read_text())
    link(schema, types(version))
    return jsonschema.Draft202012Validator(schema)


@cache
def types(version: str) -> dict[str, Any]:
    """Kubernetes' types by name, with references resolved."""
    found: dict[str, Any] = json.loads((SCHEMAS / version / "_definitions.json").read_text())
    link(found["$defs"], found["$defs"])
    return found["$defs"]  # type: ignore[no-any-return]


def link(schema: Any, by_name: dict[str, Any]) -> None:
    """Replaces references by the types themselves, which makes validation ten times faster."""
    items = schema.items() if isinstance(schema, dict) else enumerate(schema)
    for key, value in list(items):
        if isinstance(value, dict) and isinstance(value.get("$ref"), str):
            schema[key] = by_name[value["$ref"].rpartition("/")[2]]
        elif isinstance(value, dict | list):
            link(value, by_name)


@cache
def mistakes(version: str, file: str, manifest: str) -> list[str]:
    """Validation errors of a manifest; cached, because value sets share many manifests."""
    errors = validator(version, file).iter_errors(json.loads(manifest))
    return [f"{file}: {error.json_path}: {error.message}" for error in errors]


def schema_file(manifest: Manifest) -> str:
    group, _, version = manifest["apiVersion"].rpartition("/")
    middle = f"{group.partition('.')[0]}-" if group else ""
    return f"{manifest['kind'].lower()}-{middle}{version}.json"


@pytest.mark.parametrize("version", NEWEST)
def test_manifests_are_valid(release: Release, version: str) -> None:
    """Checked with the strict schemas of three minor versions of Kubernetes."""
    problems = []
    for manifest in release.manifests:
        if is_custom(manifest):
            problems += mistakes_of_custom_resource(version, manifest)
        else:
            problems += mistakes(version, schema_file(manifest), json.dumps(manifest))
    assert problems == []


def is_custom(manifest: Manifest) -> bool:
    return f"{manifest['apiVersion']} {manifest['kind']}" in CUSTOM_RESOURCES


def mistakes_of_custom_resource(version: str, manifest: Manifest) -> list[str]:
    """Validation errors of the spec, and of the pods of a LeaderWorkerSet."""
    name = f"{manifest['apiVersion']} {manifest['kind']}"
    schema = {"type": "object", "additionalProperties": False, **CUSTOM_RESOURCES[name]}
    schema["definitions"] = CUSTOM_RESOURCES["definitions"]
    found = [
        f"{name}: {error.json_path}: {error.message}"
        for error in jsonschema.Draft7Validator(schema).iter_errors(manifest["spec"])
    ]
    group = manifest["spec"].get("leaderWorkerTemplate", {})
    pods = jsonschema.Draft202012Validator(types(version)["io.k8s.api.core.v1.PodTemplateSpec"])
    for role in group.keys() & {"leaderTemplate", "workerTemplate"}:
        errors = pods.iter_errors(group[role])
        found += [f"{name} {role}: {error.json_path}: {error.message}" for error in errors]
    return found


def test_the_validation_finds_an_unknown_field() -> None:
    """The error names the misspelt field."""
    manifest = json.loads(json.dumps(render("minimal").deployment("gateway")))
    manifest["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    errors = list(validator(NEWEST[-1], schema_file(manifest)).iter_errors(manifest))
    assert "readinesProbe" in errors[0].message
    (workers,) = json.loads(json.dumps(render("lws").of_kind("LeaderWorkerSet")))
    workers["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["containers"][0]["imag"] = ""
    workers["spec"]["replica"] = 1
    found = mistakes_of_custom_resource(NEWEST[-1], workers)
    assert ["replica" in found[0], "imag" in found[1], len(found)] == [True, True, 2]


@pytest.mark.parametrize(("name", "kinds"), SETS.items())
def test_value_sets_render_their_objects(name: str, kinds: dict[str, int]) -> None:
    """The number of objects of the kinds that each value set enables."""
    release = render(name)
    assert {kind: len(release.of_kind(kind)) for kind in kinds} == kinds


def test_the_chart_lints() -> None:
    """`helm lint --strict` passes."""
    command = [str(find_helm()), "lint", "--strict", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_fit(release: Release) -> None:
    """Names have at most 63 characters and are unique within a kind."""
    names = [(each["kind"], each["metadata"]["name"]) for each in release.manifests]
    assert [name for _, name in names if len(name) > 63] == []
    assert len(names) == len(set(names))


def test_long_names_are_cut() -> None:
    """With the longest allowed names the objects' names have at most 63 characters."""
    models = [{"name": "a-very-long-organisation/a-very-long-name-of-a-model-indeed"}]
    values = {"fullnameOverride": "x" * 31, "models": models}
    names = [each["metadata"]["name"] for each in render(values=values).manifests]
    assert max(map(len, names)) <= 63


def test_images_are_listed_and_pinned(release: Release) -> None:
    """Every image is in images.txt and has a tag other than latest."""
    listed = (CHART / "images.txt").read_text().split()
    for name, container in release.containers():
        image = container["image"].partition("@")[0].removeprefix("registry.internal:5000/mirror/")
        if not image.startswith("registry.example.com/"):
            assert image in listed, name
        assert re.fullmatch(r"[a-z0-9./-]+:(?!latest)[\w.-]+", image), name


def test_images_come_from_the_mirror_by_digest() -> None:
    """ci/airgap.yaml pins each image by digest and takes it from the mirror."""
    for name, container in render("airgap").containers():
        pattern = r"registry\.internal:5000/mirror/weir/[a-z]+:0\.1\.0@sha256:[0-9a-f]{64}"
        assert re.fullmatch(pattern, container["image"]), name
    assert all(
        pod["spec"]["imagePullSecrets"] == [{"name": "registry-internal"}]
        for _, pod in render("airgap").pods
    )


def test_pods_are_restricted(release: Release) -> None:
    """The Pod Security Standard restricted, a read-only root file system, and no token."""
    for name, pod in release.pods:
        spec = pod["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] == context["runAsGroup"] == 10001, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        kinds = {key for volume in spec["volumes"] for key in volume} - {"name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret", "configMap"}, name
    for name, container in release.containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"]["memory"], name
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
    for account in release.of_kind("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_pods_run_as_the_user_of_the_images() -> None:
    """runAsUser equals USER in the Dockerfiles."""
    uid = render("minimal").deployment("gateway")["spec"]["template"]["spec"]["securityContext"]
    for service in ("gateway", "orchestrator", "tokenizer", "inference"):
        dockerfile = (CHART.parents[1] / service / "Dockerfile").read_text()
        assert f"USER {uid['runAsUser']}:{uid['runAsGroup']}\n" in dockerfile


def test_mounts_and_volumes_match(release: Release) -> None:
    """Each mount names a volume of its pod; each volume is mounted."""
    for name, pod in release.pods:
        containers = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
        mounted = {mount["name"] for each in containers for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}, name
