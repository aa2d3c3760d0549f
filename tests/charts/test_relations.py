"""Ports, times and names in the chart agree with each other and with the services."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import ORCHESTRATOR_PORT, PEERS_PORT, GatewaySettings
from inference.settings import InferenceSettings
from mesh.process.settings import ServiceSettings, variable_name
from orchestrator.settings import INFERENCE_PORT, TOKENIZER_PORT, OrchestratorSettings
from tests.charts.rendered import COMPONENTS, ROOT, Manifest, Release, environment, render
from tokenizer.settings import TokenizerSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "orchestrator": OrchestratorSettings,
    "tokenizer": TokenizerSettings,
    "inference": InferenceSettings,
}
FOREIGN = re.compile(r"HOME|TMPDIR|POD_NAME|NODE_NAME|(OTEL|HF)_[A-Z_]+")
"""Variables of libraries, and of the chart itself."""

DEPLOYMENT_SPECIFIC = re.compile(
    r".*_(LISTEN|MODEL|MODEL_NAME|INDEX|LOG_FORMAT|HOST|TLS_.+|HEALTH_LISTEN"
    r"|ALLOW_ANONYMOUS|ALLOWED_HOSTS)"
)
"""Settings whose value in a pod differs from the default on purpose."""

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def container_of(release: Release, component: str) -> Manifest:
    container: Manifest = release.deployment(component)["spec"]["template"]["spec"]["containers"][0]
    return container


def container_ports(container: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_every_variable_is_a_setting(release: Release) -> None:
    """Each variable of a service's container is a setting of that service."""
    for component in COMPONENTS:
        settings = SETTINGS[component]
        known = {variable_name(settings, field) for field in settings.model_fields}
        for deployment in release.component("Deployment", component):
            container = deployment["spec"]["template"]["spec"]["containers"][0]
            names = [each["name"] for each in container["env"]]
            assert len(names) == len(set(names))
            assert [n for n in names if n not in known and not FOREIGN.fullmatch(n)] == []


def test_every_value_is_accepted(release: Release) -> None:
    """The services' settings accept the values in the manifests."""
    for component in COMPONENTS:
        settings = SETTINGS[component]
        fields = {variable_name(settings, field): field for field in settings.model_fields}
        for deployment in release.component("Deployment", component):
            container = deployment["spec"]["template"]["spec"]["containers"][0]
            given = {fields[k]: v for k, v in environment(container).items() if k in fields and v}
            aliased = {settings.model_fields[k].validation_alias or k: v for k, v in given.items()}
            settings.model_validate(aliased)


@pytest.mark.parametrize("component", COMPONENTS)
def test_defaults_equal_those_of_the_services(component: str) -> None:
    """The chart's default of a setting equals the service's default."""
    settings = SETTINGS[component]
    fields = {variable_name(settings, field): field for field in settings.model_fields}
    for name, value in environment(container_of(render("minimal"), component)).items():
        if name in fields and not DEPLOYMENT_SPECIFIC.fullmatch(name):
            default = settings.model_fields[fields[name]].default
            given = value == "true" if isinstance(default, bool) else type(default)(value)
            assert given == default, name


def test_the_models_of_searches_reach_the_orchestrator() -> None:
    """The encoder and the reranker with their keys; the settings accept all of it."""
    embedding = {
        "model": "e5", "url": "https://e.example.org/v1", "existingSecret": "encoder",
        "timeoutSeconds": 1.5, "queryPrefix": "query: ", "postgresColumn": "embedding",
        "opensearchField": "vector",
    }  # fmt: skip
    rerank = {
        "model": "cross", "url": "https://r.example.org/v1", "existingSecret": "reranker",
        "key": "token", "timeoutSeconds": 3,
    }  # fmt: skip
    searches = {"grounded": "cite", "rewriteTimeoutSeconds": 4}
    values = {"orchestrator": {"embedding": embedding, "rerank": rerank, **searches}}
    container = container_of(render("minimal", values=values), "orchestrator")
    given = environment(container)
    settings = OrchestratorSettings(
        **{
            name.removeprefix("ORCHESTRATOR_").lower(): given[name]
            for name in given
            if re.search("EMBEDDING|RERANK|GROUNDED|REWRITE", name) and "KEY" not in name
        },
        index="file",
    )
    assert (settings.embedding_model, settings.embedding_url) == ("e5", embedding["url"])
    assert (settings.embedding_timeout_seconds, settings.rerank_timeout_seconds) == (1.5, 3)
    assert settings.embedding_query_prefix == "query: "
    assert (settings.postgres_embedding, settings.opensearch_embedding) == ("embedding", "vector")
    assert (settings.rerank_model, settings.rerank_url) == ("cross", rerank["url"])
    assert (settings.grounded, settings.rewrite_timeout_seconds) == ("cite", 4)
    keys = {
        each["name"]: each["valueFrom"]["secretKeyRef"]
        for each in container["env"]
        if each["name"].endswith("_API_KEY")
    }
    assert keys == {
        "ORCHESTRATOR_EMBEDDING_API_KEY": {"name": "encoder", "key": "api-key"},
        "ORCHESTRATOR_RERANK_API_KEY": {"name": "reranker", "key": "token"},
    }
    defaults = environment(container_of(render("minimal"), "orchestrator"))
    assert not [name for name in defaults if "EMBEDDING" in name or "RERANK" in name]


@pytest.mark.parametrize("component", COMPONENTS)
def test_ports_agree(component: str) -> None:
    """Setting's default, listen address, container port, Service port and EXPOSE are equal."""
    release = render("minimal")
    container = container_of(release, component)
    ports, variables = container_ports(container), environment(container)
    prefix = component.upper()
    main = ports["http" if component == "gateway" else "grpc"]
    assert main == port_of(SETTINGS[component].model_fields["listen"].default)
    assert main == port_of(variables[f"{prefix}_LISTEN"])
    if component != "gateway":
        assert ports["metrics"] == port_of(ServiceSettings.model_fields["metrics_listen"].default)
        assert ports["metrics"] == port_of(variables[f"{prefix}_METRICS_LISTEN"])
        (service,) = release.component("Service", component)
        assert service["spec"]["clusterIP"] == "None"
        assert {p["name"]: p["port"] for p in service["spec"]["ports"]} == ports
    dockerfile = (ROOT / component / "Dockerfile").read_text()
    exposed = re.findall(r"^EXPOSE (.+)$", dockerfile, re.MULTILINE)[-1].split()
    assert sorted(ports.values()) == sorted(map(int, exposed))


def test_upstream_ports_agree() -> None:
    """The ports of upstream addresses are the callers' defaults."""
    orchestrator = environment(container_of(render("minimal"), "orchestrator"))
    gateway = environment(container_of(render("minimal"), "gateway"))
    assert port_of(gateway["ORCHESTRATOR_HOST"]) == ORCHESTRATOR_PORT
    assert port_of(gateway["GATEWAY_PEERS_HOST"]) == PEERS_PORT
    assert port_of(gateway["GATEWAY_PEERS_LISTEN"]) == PEERS_PORT
    assert port_of(orchestrator["TOKENIZER_HOST"]) == TOKENIZER_PORT
    assert port_of(orchestrator["INFERENCE_HOST"]) == INFERENCE_PORT


def test_probes_use_ports_of_their_container(release: Release) -> None:
    """Startup, readiness and liveness probes name a port of their container."""
    for deployment in release.of_kind("Deployment"):
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        ports = container_ports(container)
        for probe in PROBES:
            if "grpc" in container[probe]:
                name = "health" if "health" in ports else "grpc"
                assert container[probe]["grpc"]["port"] == ports[name]
            else:
                assert container[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("component", ["orchestrator", "tokenizer", "inference"])
def test_liveness_does_not_depend_on_other_services(component: str) -> None:
    """Liveness and startup check the process; readiness checks the gRPC service by name."""
    container = container_of(render("minimal"), component)
    service = f"mesh.v1.{component.title()}Service"
    proto = (ROOT / "proto" / "mesh" / "v1" / f"{component}.proto").read_text()
    assert f"service {component.title()}Service" in proto
    assert container["readinessProbe"]["grpc"]["service"] == service
    assert "service" not in container["livenessProbe"]["grpc"]
    assert "service" not in container["startupProbe"]["grpc"]


def test_the_gateways_probes_are_routes() -> None:
    """Startup and liveness use /livez, readiness uses /readyz."""
    container = container_of(render("minimal"), "gateway")
    paths = {probe: container[probe]["httpGet"]["path"] for probe in PROBES}
    assert paths == dict(zip(PROBES, ("/livez", "/readyz", "/livez"), strict=True))
    source = (ROOT / "gateway" / "app.py").read_text()
    assert all(f'"{path}"' in source for path in paths.values())


def test_the_startup_probe_lasts_startup_seconds() -> None:
    """The startup probe fails after startupSeconds, before the rollout's deadline."""
    values = {"inference": {"startupSeconds": 1501}}
    spec = render(values=values).deployment("inference")["spec"]
    probe = spec["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1502
    assert spec["progressDeadlineSeconds"] == 1801


@pytest.mark.parametrize(
    ("drain", "given", "pre_stop"),
    [(0, 0, 0), (1, 0, 1), (30, 0, 5), (40, 0, 6), (60, 0, 10), (3600, 0, 10), (30, 35, 35)],
)
def test_termination_times_follow_from_drain_seconds(drain: int, given: int, pre_stop: int) -> None:
    """`drain` determines preStop, the drain deadline, and the termination grace period."""
    values: dict[str, Any] = {"drain": {"seconds": drain, "preStopSeconds": given}}
    for deployment in render(values=values).of_kind("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        container = spec["containers"][0]
        (deadline,) = [v for k, v in environment(container).items() if k.endswith("_DRAIN_SECONDS")]
        slept = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert (int(deadline), slept) == (drain, pre_stop)
        assert spec["terminationGracePeriodSeconds"] == pre_stop + drain + 10


def test_proxy_timeouts_exceed_the_request_timeout() -> None:
    """Ingress and HTTPRoute time out after the gateway's deadline; the Ingress does not buffer."""
    values = {"gateway": {"requestTimeoutSeconds": 45.5}}
    release = render("tls", values=values)
    (ingress,) = release.of_kind("Ingress")
    (route,) = release.of_kind("HTTPRoute")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "56"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    (rule,) = route["spec"]["rules"]
    assert rule["timeouts"] == {"request": "56s", "backendRequest": "56s"}


METRICS_MODULES = {
    "gateway": "gateway.observability.metrics",
    "orchestrator": "orchestrator.observability.metrics",
    "tokenizer": "tokenizer.metrics",
    "inference": "inference.api.metrics",
}


def test_scaling_metrics_exist() -> None:
    """Autoscalers query metrics that the services register."""
    sources = "\n".join(
        Path(str(import_module(METRICS_MODULES[component]).__file__)).read_text()
        for component in COMPONENTS
    )
    release = render("keda")
    queries = [
        trigger["metadata"]["query"]
        for scaled in release.of_kind("ScaledObject")
        for trigger in scaled["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    ]
    names = {re.findall(r"(?:sum|increase)\((\w+){", query)[0] for query in queries}
    assert len(queries) == len(names) == 8
    assert [name for name in names if f'"{name}"' not in sources] == []
