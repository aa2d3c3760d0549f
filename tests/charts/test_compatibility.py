"""Versions of Helm and kinds of clusters: IP families, user ids, meshes, quotas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.charts.rendered import VALUE_SETS, Manifest, RenderError, environment, render
from tests.charts.test_networkpolicy import Pod, allowed, pods_of

TLS = {"enabled": True, "existingSecret": "certificates"}
PACKAGE = [
    {"name": "demo"},
    {"name": "chat", "source": "package"},
    {"name": "encoder", "source": "package", "package": "encoder"},
]


def without_delete_policy(manifest: Manifest) -> Manifest:
    """The manifest without the hook annotations that depend on Helm's version."""
    copy: Manifest = json.loads(json.dumps(manifest))
    annotations = copy["metadata"].get("annotations", {})
    for name in ("helm.sh/hook-delete-policy", "helm.sh/hook-output-log-policy"):
        annotations.pop(name, None)
    return copy


@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_3_and_4_render_the_same_objects(name: str) -> None:
    """Apart from the deletion of the test pod, which Helm 3 cannot do after reading its log."""
    third, fourth = (
        [without_delete_policy(each) for each in render(name, major=major).manifests]
        for major in (3, 4)
    )
    # Helm 3 sorts hooks last, Helm 4 by kind.
    assert sorted(third, key=json.dumps) == sorted(fourth, key=json.dumps)


@pytest.mark.parametrize(
    ("policy", "families"),
    [("PreferDualStack", []), ("RequireDualStack", ["IPv6", "IPv4"]), ("SingleStack", ["IPv6"])],
)
def test_services_have_the_chosen_ip_families(policy: str, families: list[str]) -> None:
    """All Services; by default neither field is set."""
    values = {"ipFamilies": {"policy": policy, "families": families}}
    for service in render("vllm", values=values).of_kind("Service"):
        assert service["spec"]["ipFamilyPolicy"] == policy
        assert service["spec"].get("ipFamilies", []) == families
    for service in render("vllm").of_kind("Service"):
        assert not service["spec"].keys() & {"ipFamilyPolicy", "ipFamilies"}


def test_two_families_are_no_single_stack() -> None:
    """The message says what to change."""
    values = {"ipFamilies": {"policy": "SingleStack", "families": ["IPv4", "IPv6"]}}
    with pytest.raises(RenderError, match="choose a dual-stack policy"):
        render(values=values)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_services_listen_on_ipv6_and_ipv4(name: str) -> None:
    """No address of an IP family is in the manifests but the unspecified ones."""
    for _, container in render(name).containers():
        listens = {
            k: v for k, v in environment({"env": [], **container}).items() if k.endswith("LISTEN")
        }
        assert all(address.startswith("[::]:") for address in listens.values())


@pytest.mark.parametrize("name", ["lws", "multi-model"])
def test_the_platform_may_assign_user_ids(name: str) -> None:
    """With runAsUser 0 no object names a user or group, as OpenShift's restricted-v2 requires."""
    for pod_name, pod in render(name, values={"pod": {"runAsUser": 0}}).pods:
        context = pod["spec"]["securityContext"]
        assert not context.keys() & {"runAsUser", "runAsGroup", "fsGroup"}, pod_name
        assert context["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert "runAsUser" not in container["securityContext"]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_ports_are_named_by_their_protocol(name: str) -> None:
    """Meshes choose a protocol by the name of a port or its appProtocol."""
    release = render(name)
    for service in release.of_kind("Service"):
        for port in service["spec"]["ports"]:
            assert port["name"].partition("-")[0] in {"http", "grpc", "metrics"}
            assert port["appProtocol"] in {"http", "https", "kubernetes.io/h2c"}
    for container_name, container in release.containers():
        for port in container.get("ports", ()):
            name = port["name"].partition("-")[0]
            assert name in {"http", "grpc", "metrics", "health"}, container_name


@pytest.mark.parametrize(
    ("kind", "namespace", "probes", "ports"),
    [
        (
            "istio",
            "istio-system",
            ("sidecar.istio.io/rewriteAppHTTPProbers", "true"),
            "traffic.sidecar.istio.io/excludeInboundPorts",
        ),
        (
            "linkerd",
            "linkerd",
            ("config.linkerd.io/proxy-await", "enabled"),
            "config.linkerd.io/skip-inbound-ports",
        ),
    ],
)
def test_pods_join_a_service_mesh(
    kind: str, namespace: str, probes: tuple[str, str], ports: str
) -> None:
    """Probes bypass the mesh, and the sidecars reach its control plane and nothing else."""
    values: dict[str, Any] = {"serviceMesh": {"kind": kind}}
    release = render(values=values)
    for deployment in release.of_kind("Deployment"):
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        assert annotations[probes[0]] == probes[1]
        assert ports not in annotations
    for deployment in render(values={**values, "tls": TLS}).of_kind("Deployment"):
        assert deployment["spec"]["template"]["metadata"]["annotations"][ports] == "50050"
    plane = Pod("plane", {}, {"kubernetes.io/metadata.name": namespace})
    other = Pod("other", {}, {"kubernetes.io/metadata.name": "elsewhere"})
    for pod in pods_of(release):
        assert allowed(release, pod, plane, 15012)
        assert not allowed(release, pod, other, 15012)
        assert not allowed(render(), pod, plane, 15012)


@pytest.mark.parametrize("name", ["gpu", "lws"])
def test_every_container_can_satisfy_a_quota(name: str) -> None:
    """A namespace with a quota admits a pod only if each container sets requests and limits."""
    wanted = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}
    sections = ("gateway", "orchestrator", "tokenizer", "inference", "vllm")
    values = {key: {"resources": wanted} for key in (*sections, "modelDownload", "tests")}
    for container_name, container in render(name, values=values).containers():
        resources = container["resources"]
        assert resources["requests"] == wanted["requests"], container_name
        assert wanted["limits"].items() <= resources["limits"].items(), container_name


def test_the_models_of_the_images_need_no_volume() -> None:
    """Engine and tokenizer read their folders; searches go to the model that the values name."""
    release = render(values={"models": PACKAGE, "orchestrator": {"searchModel": "demo"}})
    for component, variable in (("inference", "INFERENCE_MODEL"), ("tokenizer", "TOKENIZER_MODEL")):
        for name in ("chat", "encoder"):
            deployment = release.named("Deployment", f"weir-{component}-{name}")
            pod = deployment["spec"]["template"]["spec"]
            assert environment(pod["containers"][0])[variable] == f"/app/models/{name}"
            assert "initContainers" not in pod
            assert {volume["name"] for volume in pod["volumes"]} == {"tmp"}
    (container,) = release.deployment("orchestrator")["spec"]["template"]["spec"]["containers"]
    assert environment(container)["ORCHESTRATOR_SEARCH_MODEL"] == "demo"
    with pytest.raises(
        RenderError, match="searchModel is other, but models has demo, chat, encoder"
    ):
        render(values={"models": PACKAGE, "orchestrator": {"searchModel": "other"}})
