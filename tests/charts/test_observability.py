"""The manifests of charts/observability: security, images, and links of metrics and traces."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.fixture(params=[(), OWN_REGISTRY], ids=["default", "registry"], scope="module")
def release(request: pytest.FixtureRequest) -> Release:
    return render(*request.param)


def test_the_chart_lints() -> None:
    """`helm lint --strict` passes."""
    command = [str(find_helm()), "lint", "--strict", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pods_are_restricted(release: Release) -> None:
    """The Pod Security Standard restricted, with a read-only root file system."""
    assert {name for name, _ in release.pods} == {"tempo", "prometheus", "grafana"}
    for name, pod in release.pods:
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["spec"]["automountServiceAccountToken"] == (name == "prometheus")
    for name, container in release.containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"], name
        assert not security["allowPrivilegeEscalation"], name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert {"requests", "limits"} <= container["resources"].keys(), name


def test_images_are_pinned_and_listed() -> None:
    """No image is `latest`, and all are in images.txt."""
    used = {container["image"] for _, container in render().containers()}
    assert {f"docker.io/{image}" for image in used} == set(
        (CHART / "images.txt").read_text().split()
    )
    assert all(image.rpartition(":")[2] not in ("", "latest") for image in used)
    mirrored = {container["image"] for _, container in render(*OWN_REGISTRY).containers()}
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
    assert ports == {"tempo": [3200, 4317, 4318], "prometheus": [9090], "grafana": [3000]}


def config(release: Release, name: str) -> dict[str, str]:
    data: dict[str, str] = release.named("ConfigMap", name)["data"]
    return data


def test_the_dashboards_and_alerts_are_those_of_the_weir_chart(release: Release) -> None:
    """They are the same files."""
    weir = ROOT / "charts" / "weir"
    dashboards = {path.name: path.read_text() for path in weir.glob("dashboards/*.json")}
    assert len(dashboards) == 4
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
    assert to_metrics["tags"] == [{"key": "service.name", "value": "component"}]
    assert len(to_metrics["queries"]) >= 3
    used = {source for panel in panels() for source in ("prometheus", "tempo") if source in panel}
    assert used == set(sources)


def panels() -> Iterator[str]:
    for path in (ROOT / "charts" / "weir" / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            if "datasource" in panel:
                yield panel["datasource"]["type"]


def test_prometheus_reads_its_configuration(release: Release, tmp_path: Path) -> None:
    """It stores exemplars, accepts remote writes, and discovers pods in its namespaces only."""
    text = config(release, "prometheus")["prometheus.yml"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    namespaces = jobs["pods"]["kubernetes_sd_configs"][0].get("namespaces", {}).get("names", [])
    roles = release.of_kind("Role")
    assert [role["metadata"]["namespace"] for role in roles] == namespaces
    assert len(release.of_kind("ClusterRole")) == (not namespaces)
    for role in roles + release.of_kind("ClusterRole"):
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
