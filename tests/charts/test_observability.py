"""The manifests of charts/observability: security, images, and links of metrics and traces."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.dashboards.panels import all_panels
from scripts.find_helm import find_helm
from tests.charts.rendered import ROOT, Manifest, Release

CHART = ROOT / "charts" / "observability"


def rendered(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `helm template` on the chart."""
    command = [str(find_helm()), "template", "observability", str(CHART)]
    command += ["--namespace", "observability", "--kube-version", "1.34.0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render(*arguments: str) -> Release:
    """The rendered manifests."""
    done = rendered(*arguments)
    assert done.returncode == 0, done.stderr
    return Release(tuple(each for each in yaml.safe_load_all(done.stdout) if each))


OWN_REGISTRY = ("--values", str(CHART / "ci" / "registry.yaml"))
LOGS = ("--set", "loki.enabled=true")


@pytest.fixture(
    params=[(), OWN_REGISTRY, LOGS], ids=["default", "registry", "logs"], scope="module"
)
def release(request: pytest.FixtureRequest) -> Release:
    return render(*request.param)


def test_the_chart_lints() -> None:
    """`helm lint --strict` passes."""
    command = [str(find_helm()), "lint", "--strict", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pods_are_restricted(release: Release) -> None:
    """The Pod Security Standard restricted, with a read-only root file system."""
    has_logs = any(name == "loki" for name, _ in release.pods)
    own = {"tempo", "prometheus", "grafana"}
    assert {name for name, _ in release.pods} == own | ({"loki", "alloy"} if has_logs else set())
    for name, pod in release.pods:
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        reads_pods = name in ("prometheus", "alloy")
        assert pod["spec"]["automountServiceAccountToken"] == reads_pods
        assert not [each for each in pod["spec"]["volumes"] if "hostPath" in each], name
    for name, container in release.containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"], name
        assert not security["allowPrivilegeEscalation"], name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert {"requests", "limits"} <= container["resources"].keys(), name


def test_images_are_pinned_and_listed() -> None:
    """No image is `latest`, all are in images.txt, and all but Alloy's have a digest."""
    used = {container["image"] for _, container in render(*LOGS).containers()}
    assert {f"docker.io/{image}" for image in used} == set(
        (CHART / "images.txt").read_text().split()
    )
    assert all(image.partition(":")[2] not in ("", "latest") for image in used)
    assert [image.partition(":")[0] for image in used if "@sha256:" not in image] == [
        "grafana/alloy"
    ]
    mirrored = {container["image"] for _, container in render(*OWN_REGISTRY, *LOGS).containers()}
    assert mirrored == {f"registry.example.com/mirror/{image}" for image in used}


def test_services_lead_to_container_ports(release: Release) -> None:
    """The Services have the names that the Weir chart's documentation uses."""
    pods = dict(release.pods)
    ports = {}
    for service in release.of_kind("Service"):
        pod = pods[service["metadata"]["name"]]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        named = {p["name"]: p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]
        ports[service["metadata"]["name"]] = sorted(p["port"] for p in service["spec"]["ports"])
    logs = {"loki": [3100]} if "loki" in ports else {}
    assert ports == {
        "tempo": [3200, 4317, 4318],
        "prometheus": [9090],
        "grafana": [3000],
        **logs,
    }


def config(release: Release, name: str) -> dict[str, str]:
    data: dict[str, str] = release.named("ConfigMap", name)["data"]
    return data


def test_the_dashboards_and_alerts_are_those_of_the_weir_chart(release: Release) -> None:
    """They are the same files."""
    weir = ROOT / "charts" / "weir"
    dashboards = {path.name: path.read_text() for path in weir.glob("dashboards/*.json")}
    assert len(dashboards) == 5
    assert {k: v.strip() for k, v in config(release, "grafana-dashboards").items()} == {
        k: v.strip() for k, v in dashboards.items()
    }
    alerts = {f"alerts-{path.name}": path.read_text() for path in weir.glob("alerts/*.yaml")}
    assert alerts
    loaded = config(release, "prometheus")
    assert {k: v.strip() for k, v in loaded.items() if k.startswith("alerts-")} == {
        k: v.strip() for k, v in alerts.items()
    }


def data_sources(release: Release) -> dict[str, dict[str, Any]]:
    listed = yaml.safe_load(config(release, "grafana")["datasources.yaml"])["datasources"]
    return {each["uid"]: each for each in listed}


def test_metrics_lead_to_traces_and_traces_to_metrics(release: Release) -> None:
    """The links of the data sources use existing uids, addresses and metrics."""
    sources = data_sources(release)
    services = {service["metadata"]["name"] for service in release.of_kind("Service")}
    for source in sources.values():
        host, _, port = source["url"].removeprefix("http://").partition(":")
        assert host in services
        spec = release.named("Service", host)["spec"]
        assert int(port) in {each["port"] for each in spec["ports"]}
    (destination, *_) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination == {"name": "trace_id", "datasourceUid": "tempo"}
    to_metrics = sources["tempo"]["jsonData"]["tracesToMetrics"]
    assert to_metrics["datasourceUid"] in sources
    assert to_metrics["tags"] == SPAN_TAGS
    labels = {
        rule["target_label"]
        for job in yaml.safe_load(config(release, "prometheus")["prometheus.yml"])["scrape_configs"]
        for rule in job.get("relabel_configs", [])
        if "target_label" in rule
    }
    assert {tag["value"] for tag in SPAN_TAGS} <= labels
    assert len(to_metrics["queries"]) >= 3
    assert all("{$$__tags}" in each["query"] for each in to_metrics["queries"])
    assert set(panels()) == {"prometheus", "tempo", "loki"}


SPAN_TAGS = [
    {"key": "k8s.namespace.name", "value": "namespace"},
    {"key": "k8s.pod.name", "value": "pod"},
]
"""Attributes that the Weir chart gives to every span, and the labels of metrics and logs."""


def test_traces_lead_to_logs_and_logs_to_traces() -> None:
    """The labels of the log lines are those that the data source asks for."""
    release = render(*LOGS)
    sources = data_sources(release)
    to_logs = sources["tempo"]["jsonData"]["tracesToLogsV2"]
    assert to_logs["datasourceUid"] == "loki"
    assert to_logs["tags"] == SPAN_TAGS
    assert to_logs["customQuery"] is True
    assert to_logs["query"] == '{$${__tags}} | json | trace_id = "$${__trace.traceId}"'
    alloy = config(release, "alloy")["config.alloy"]
    for tag in SPAN_TAGS:
        assert re.search(rf'target_label +"?= "{tag["value"]}"', alloy)
    assert "http://loki:3100/loki/api/v1/push" in alloy
    [field] = sources["loki"]["jsonData"]["derivedFields"]
    assert field["datasourceUid"] == "tempo"
    line = json.dumps({"message": "request finished", "trace_id": "1" * 32})
    found = re.search(field["matcherRegex"], line)
    assert found is not None
    assert found[1] == "1" * 32
    assert "tracesToLogsV2" not in data_sources(render())["tempo"]["jsonData"]
    rules = release.named("ClusterRole", "observability-alloy")["rules"]
    assert rules == [
        {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list", "watch"]}
    ]


def test_loki_stores_in_its_volume_only() -> None:
    """Every path is on the volume, since the root file system is read-only."""
    release = render(*LOGS, "--set", "loki.retention=48h")
    loki = yaml.safe_load(config(release, "loki")["loki.yaml"])
    paths = (
        loki["common"]["path_prefix"],
        loki["storage_config"]["filesystem"]["directory"],
        loki["compactor"]["working_directory"],
    )
    assert all(path.startswith("/var/loki") for path in paths)
    assert loki["limits_config"]["retention_period"] == "48h"
    assert loki["compactor"]["retention_enabled"] is True


def test_deploy_links_answers_to_their_traces() -> None:
    """`make deploy OBSERVABILITY=1` sets the link to a dashboard that exists, with its variable."""
    command = ["make", "-n", "deploy", "OBSERVABILITY=1", "HELM=helm", "VENV=.venv"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    url = re.search(r"--set-string 'gateway.traceUrlTemplate=([^']+)'", done.stdout)
    assert url is not None, done.stdout + done.stderr
    assert url[1] in config_of_notes()
    pattern = r"http://localhost:3000/d/([\w-]+)\?var-(\w+)=\{trace_id\}"
    [(uid, variable)] = re.findall(pattern, url[1])
    [board] = [each for each in boards() if each["uid"] == uid]
    assert variable in {each["name"] for each in board["templating"]["list"]}
    weir = [str(find_helm()), "template", "weir", str(ROOT / "charts" / "weir")]
    weir += ["--kube-version", "1.34.0", "--show-only", "templates/gateway/deployment.yaml"]
    weir += ["--set-string", f"gateway.traceUrlTemplate={url[1]}"]
    rendered = subprocess.run(weir, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"value: {url[1]}" in rendered.replace('"', "")


def config_of_notes() -> str:
    return (CHART / "templates" / "NOTES.txt").read_text()


def boards() -> list[dict[str, Any]]:
    files = (ROOT / "charts" / "weir" / "dashboards").glob("*.json")
    return [json.loads(path.read_text()) for path in files]


def panels() -> Iterator[str]:
    for board in boards():
        for panel in all_panels(board):
            if "datasource" in panel:
                yield panel["datasource"]["type"]


def test_prometheus_reads_its_configuration(release: Release, tmp_path: Path) -> None:
    """It stores exemplars, accepts remote writes, and discovers pods in its namespaces only."""
    text = config(release, "prometheus")["prometheus.yml"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    namespaces = jobs["pods"]["kubernetes_sd_configs"][0].get("namespaces", {}).get("names", [])
    roles = [r for r in release.of_kind("Role") if r["metadata"]["name"].endswith("-prometheus")]
    cluster_roles = [
        r for r in release.of_kind("ClusterRole") if r["metadata"]["name"].endswith("-prometheus")
    ]
    assert [role["metadata"]["namespace"] for role in roles] == namespaces
    assert len(cluster_roles) == (not namespaces)
    for role in roles + cluster_roles:
        assert role["rules"] == [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
        ]
    container = release.deployment("prometheus")["spec"]["template"]["spec"]["containers"][0]
    assert "--enable-feature=exemplar-storage" in container["args"]
    assert "--web.enable-remote-write-receiver" in container["args"]
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    for name, content in config(release, "prometheus").items():
        text = content.replace("/etc/prometheus", str(tmp_path))
        if name == "prometheus.yml":
            # Debian's Prometheus has no Kubernetes service discovery.
            whole = yaml.safe_load(text)
            del whole["scrape_configs"][0]["kubernetes_sd_configs"]
            text = yaml.safe_dump(whole)
        (tmp_path / name).write_text(text)
    command = [tool, "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(list(tmp_path.glob('alerts-*')))} rule files found" in done.stdout


def test_tempo_receives_otlp(release: Release) -> None:
    """On both ports; it generates metrics only if enabled."""
    text = yaml.safe_load(config(release, "tempo")["tempo.yaml"])
    protocols = text["distributor"]["receivers"]["otlp"]["protocols"]
    assert {name: each["endpoint"] for name, each in protocols.items()} == {
        "grpc": "0.0.0.0:4317",
        "http": "0.0.0.0:4318",
    }
    assert ("metrics_generator" in text) == ("overrides" in text)
    if "metrics_generator" in text:  # TraceQL metrics over all spans
        generator, defaults = text["metrics_generator"], text["overrides"]["defaults"]
        processors = defaults["metrics_generator"]["processors"]
        assert processors == ["service-graphs", "span-metrics", "local-blocks"]
        assert generator["traces_storage"]["path"].startswith("/var/tempo/")
        local_blocks = generator["processor"]["local_blocks"]
        assert local_blocks == {"filter_server_spans": False, "flush_to_storage": True}


def test_no_default_administrator_can_log_in() -> None:
    """Without a secret there is no administrator; with one, the password is from the secret."""

    def environment(release: Release) -> dict[str, Manifest]:
        pod = release.deployment("grafana")["spec"]["template"]["spec"]
        return {each["name"]: each for each in pod["containers"][0]["env"]}

    default = environment(render())
    assert default["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"]["value"] == "true"
    assert default["GF_AUTH_DISABLE_LOGIN_FORM"]["value"] == "true"
    own = environment(render(*OWN_REGISTRY))
    assert "GF_AUTH_ANONYMOUS_ENABLED" not in own
    reference = own["GF_SECURITY_ADMIN_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "grafana-admin", "key": "password"}


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("grafna.anonymousRole=Viewer", "grafna"),
        ("grafana.anonymousRole=Owner", "anonymousRole"),
        ("prometheus.retention=long", "retention"),
        ("tempo.image.tag=latest", "tag"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(setting: str, path: str) -> None:
    """The schema forbids unknown keys and invalid values at every level."""
    done = rendered("--set", setting)
    assert done.returncode != 0
    assert path in done.stderr
