"""Evaluates the network policies: they allow the services' calls and nothing else."""

from __future__ import annotations

import ipaddress
from typing import Any, NamedTuple

import pytest

from tests.charts.rendered import VALUE_SETS, Manifest, Release, environment, render

DNS = {"kubernetes.io/metadata.name": "kube-system", "k8s-app": "kube-dns"}
PROMETHEUS = {"kubernetes.io/metadata.name": "observability"}
OTHER_PORTS = (22, 443, 9999)
"""Ports that no container declares."""

OTHER_NAMESPACE = {"kubernetes.io/metadata.name": "elsewhere"}


class Pod(NamedTuple):
    """Caller or callee. `namespace` are the namespace's labels; None: the release's namespace."""

    name: str
    labels: dict[str, str]
    namespace: dict[str, str] | None
    ports: tuple[int, ...] = ()


def pods_of(release: Release) -> list[Pod]:
    found = []
    for name, template in release.pods:
        containers = template["spec"]["containers"]
        ports = tuple(p["containerPort"] for c in containers for p in c.get("ports", ()))
        found.append(Pod(name, template["metadata"]["labels"], None, ports))
    return found


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Manifest, pod: Pod) -> bool:
    if "ipBlock" in peer:
        # No pod of these tests is selected by its address.
        return False
    if "namespaceSelector" not in peer:
        return pod.namespace is None and selects(peer["podSelector"], pod.labels)
    inside = pod.namespace is not None and selects(peer["namespaceSelector"], pod.namespace)
    return inside and selects(peer.get("podSelector", {}), pod.labels)


def allows(rules: list[Manifest], side: str, other: Pod, port: int) -> bool:
    for rule in rules:
        # A rule without ports allows all of them.
        ports = rule.get("ports", [{"port": port, "protocol": "TCP"}])
        matches = any(each["port"] == port for each in ports if each["protocol"] == "TCP")
        if matches and (side not in rule or any(is_peer(peer, other) for peer in rule[side])):
            return True
    return False


def allowed(release: Release, caller: Pod, called: Pod, port: int) -> bool:
    """A connection needs the caller's egress and the callee's ingress."""
    policies = release.of_kind("NetworkPolicy")
    for direction, side, pod, other in (
        ("egress", "to", caller, called),
        ("ingress", "from", called, caller),
    ):
        if pod.namespace is not None:
            continue
        own = [p["spec"] for p in policies if selects(p["spec"]["podSelector"], pod.labels)]
        rules = [rule for spec in own for rule in spec.get(direction, [])]
        if own and not allows(rules, side, other, port):
            return False
    return True


def edges(release: Release) -> set[tuple[str, str, int]]:
    """Every connection between the release's pods, and those of one component, that is allowed."""
    pods = pods_of(release)
    return {
        (caller.name, called.name, port)
        for caller in pods
        for called in pods
        for port in (*called.ports, *OTHER_PORTS)
        if allowed(release, caller, called, port)
    }


def calls(release: Release) -> set[tuple[str, str, int]]:
    """Every connection that the pods make, read from their settings and arguments."""
    made = set()
    for name, template in release.pods:
        container = template["spec"]["containers"][0]
        addresses: list[str] = []
        if "env" in container and name != "weir-test":
            variables = environment(container)
            hosts = [v for k, v in variables.items() if k.endswith("_HOST")]
            addresses = [each.rpartition("=")[2] for host in hosts for each in host.split(",")]
            addresses = [each.rpartition("://")[2] for each in addresses]
        for argument in container.get("args", ()):
            flag, _, value = argument.partition("=")
            if flag in ("--url", "--engine-metrics"):
                addresses.append(value.removeprefix("http://"))
        for address in addresses:
            made |= {(name, called, port) for called, port in resolve(release, address)}
    # The pods of an engine on several nodes, of which several are workers, use any port of each
    # other.
    group = [pod for pod in pods_of(release) if pod.name.startswith("weir-lws-")]
    return made | {
        (caller.name, called.name, port)
        for caller in group
        for called in group
        for port in (*called.ports, *OTHER_PORTS)
        if caller is not called or caller.name.endswith("-worker")
    }


def resolve(release: Release, address: str) -> set[tuple[str, int]]:
    """The pods, and their port, of the address of a Service; none outside the release."""
    host, _, port = address.partition(":")
    if "." in host:
        return set()
    service: Any = release.named("Service", host)["spec"]
    (entry,) = [each for each in service["ports"] if each["port"] == int(port)]
    found = set()
    for name, template in release.pods:
        if selects({"matchLabels": service["selector"]}, template["metadata"]["labels"]):
            ports = template["spec"]["containers"][0]["ports"]
            found |= {(name, p["containerPort"]) for p in ports if p["name"] == entry["targetPort"]}
    return found


@pytest.mark.parametrize("name", VALUE_SETS)
def test_policies_allow_exactly_the_calls(name: str) -> None:
    """The allowed connections equal those that the pods' settings cause."""
    release = render(name)
    made = calls(release)
    assert len(made) >= 4
    assert edges(release) == made


def test_everything_else_is_denied() -> None:
    """A policy without rules selects every pod of the release."""
    release = render("minimal")
    (default,) = [
        p for p in release.of_kind("NetworkPolicy") if p["metadata"]["name"].endswith("deny")
    ]
    assert default["spec"].keys() == {"podSelector", "policyTypes"}
    assert default["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert all(selects(default["spec"]["podSelector"], pod.labels) for pod in pods_of(release))


def test_other_namespaces_reach_the_gateway_only() -> None:
    """From another namespace only the gateway's port is open."""
    release = render("minimal")
    outsider = Pod("outsider", {}, OTHER_NAMESPACE)
    open_ports = {
        (pod.name, port)
        for pod in pods_of(release)
        for port in pod.ports
        if allowed(release, outsider, pod, port)
    }
    assert open_ports == {("weir-gateway", 8080)}
    gateway = next(pod for pod in pods_of(release) if pod.name == "weir-gateway")
    assert not allowed(render("tls"), outsider, gateway, 8080)


def test_prometheus_reaches_the_metrics_ports() -> None:
    """The peers of metricsFrom reach the metrics port and no other."""
    release = render("kind")
    prometheus = Pod("prometheus", {}, PROMETHEUS)
    outsider = Pod("outsider", {}, OTHER_NAMESPACE)
    for pod in pods_of(release):
        for port in pod.ports:
            is_http = (pod.name, port) == ("weir-gateway", 8080)
            is_metrics = port == 9464 or is_http
            assert allowed(release, prometheus, pod, port) == is_metrics
            assert allowed(release, outsider, pod, port) == is_http


def test_pods_that_make_calls_can_resolve_names() -> None:
    """DNS is open, over UDP and TCP, to pods that resolve names, and to no other."""
    policies = {
        p["metadata"]["name"]: p["spec"] for p in render("minimal").of_kind("NetworkPolicy")
    }
    resolving = {
        name
        for name, spec in policies.items()
        for rule in spec.get("egress", [])
        if {"port": 53, "protocol": "UDP"} in rule["ports"]
        and {"port": 53, "protocol": "TCP"} in rule["ports"]
    }
    assert resolving == {"weir-gateway", "weir-orchestrator", "weir-test"}


def test_the_services_reach_a_configured_collector() -> None:
    """With an endpoint all four services reach the OTLP port; without one none does."""
    collector = Pod("tempo", {}, PROMETHEUS)
    for name, wanted in (("gpu", True), ("minimal", False)):
        release = render(name)
        services = [pod for pod in pods_of(release) if pod.name != "weir-test"]
        assert len(services) == 4
        for pod in services:
            assert allowed(release, pod, collector, 4317) == wanted, pod.name


@pytest.mark.parametrize(
    ("url", "port"), [("http://proxy:3128", 3128), ("http://proxy", 80), ("https://proxy/", 443)]
)
def test_pods_that_leave_the_cluster_reach_the_proxy(url: str, port: int) -> None:
    """Its port is open to the orchestrator and to the pods that download, and to no others."""
    proxy = Pod("proxy", {}, {"kubernetes.io/metadata.name": "proxies"})
    peers = [{"namespaceSelector": {"matchLabels": proxy.namespace}}]
    values = {"egressProxy": {"url": url}, "networkPolicy": {"proxyTo": peers}}
    release = render("multi-model", values=values)
    pods = pods_of(release)
    reaching = {pod.name for pod in pods if allowed(release, pod, proxy, port)}
    downloading = {name for name, template in release.pods if "initContainers" in template["spec"]}
    assert downloading
    assert reaching == {"weir-orchestrator", *downloading}
    other = Pod("other", {}, OTHER_NAMESPACE)
    assert not any(allowed(release, pod, other, port) for pod in pods if pod.name in downloading)


def test_the_gateway_reaches_the_database_of_its_responses() -> None:
    """Its URL is read from the secret; without one there is neither the variable nor the rule."""
    database = Pod("postgres", {}, {"kubernetes.io/metadata.name": "databases"})
    rule = {
        "to": [{"namespaceSelector": {"matchLabels": database.namespace}}],
        "ports": [{"protocol": "TCP", "port": 5432}],
    }
    values = {
        "gateway": {"responseStore": {"existingSecret": "responses", "mibPerKey": 8}},
        "networkPolicy": {"gatewayEgress": [rule]},
    }
    name = "GATEWAY_RESPONSE_STORE"
    for given, wanted in ((values, True), ({}, False)):
        release = render("minimal", values=given)
        reaching = {p.name for p in pods_of(release) if allowed(release, p, database, 5432)}
        assert reaching == ({"weir-gateway"} if wanted else set())
        template = dict(release.pods)["weir-gateway"]
        variables = {each["name"]: each for each in template["spec"]["containers"][0]["env"]}
        assert (name in variables) == wanted
        assert variables[f"{name}_SECONDS"]["value"] == "86400"
        assert variables[f"{name}_MIB_PER_KEY"]["value"] == ("8" if wanted else "32")
    secret = {"name": "responses", "key": "url"}
    variables = render("minimal", values=values).pods
    spec = dict(variables)["weir-gateway"]["spec"]
    env = {each["name"]: each for each in spec["containers"][0]["env"]}
    assert env[name]["valueFrom"] == {"secretKeyRef": secret}


def test_only_downloading_pods_reach_the_internet() -> None:
    """Only pods that download a model have egress to port 443 of any address."""
    for name, downloading in (("minimal", 0), ("gpu", 1), ("multi-model", 3), ("airgap", 0)):
        specs = [p["spec"] for p in render(name).of_kind("NetworkPolicy")]
        leaving = [
            rule
            for spec in specs
            for rule in spec.get("egress", [])
            if any("ipBlock" in peer for peer in rule.get("to", ()))
        ]
        assert len(leaving) == downloading
        for rule in leaving:
            assert rule["ports"] == [{"port": 443, "protocol": "TCP"}]
            for peer in rule["to"]:
                ipaddress.ip_network(peer["ipBlock"]["cidr"])
