"""charts/observability, rendered: what runs, as whom, and how metrics and traces are tied."""

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
    """What helm makes of the chart, or says against it."""
    command = [str(find_helm()), "template", "observability", str(CHART)]
    command += ["--namespace", "observability", "--kube-version", "1.34.0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render(*arguments: str) -> Release:
    """The manifests."""
    done = rendered(*arguments)
    assert done.returncode == 0, done.stderr
    return Release(tuple(each for each in yaml.safe_load_all(done.stdout) if each))


OWN_REGISTRY = ("--values", str(CHART / "ci" / "registry.yaml"))


@pytest.fixture(params=[(), OWN_REGISTRY], ids=["default", "registry"], scope="module")
def release(request: pytest.FixtureRequest) -> Release:
    return render(*request.param)


def test_helm_finds_nothing_wrong() -> None:
    """`helm lint --strict`."""
    command = [str(find_helm()), "lint", "--strict", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pods_are_restricted(release: Release) -> None:
    """As the strictest pod security standard has it, and without a root filesystem to write to."""
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
    """No `latest`, and each is in images.txt, for clusters without a network."""
    used = {container["image"] for _, container in render().containers()}
    assert {f"docker.io/{image}" for image in used} == set(
        (CHART / "images.txt").read_text().split()
    )
    assert all(image.rpartition(":")[2] not in ("", "latest") for image in used)
    mirrored = {container["image"] for _, container in render(*OWN_REGISTRY).containers()}
    assert mirrored == {f"registry.example.com/mirror/{image}" for image in used}


def test_services_lead_to_ports_that_are_open(release: Release) -> None:
    """By the names that the Weir chart's documentation gives."""
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
    """Byte for byte."""
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
    """By uids that there are, at addresses that there are, with metrics that there are."""
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
    """Keeps exemplars, takes Tempo's metrics, and sees pods of the namespaces that it is told."""
    text = config(release, "prometheus")["prometheus.yml"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    told = jobs["pods"]["kubernetes_sd_configs"][0].get("namespaces", {}).get("names", [])
    roles = release.of_kind("Role")
    assert [role["metadata"]["namespace"] for role in roles] == told
    assert len(release.of_kind("ClusterRole")) == (not told)
    for role in roles + release.of_kind("ClusterRole"):
        assert role["rules"] == [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
        ]
    container = release.deployment("prometheus")["spec"]["template"]["spec"]["containers"][0]
    assert "--enable-feature=exemplar-storage" in container["args"]
    assert "--web.enable-remote-write-receiver" in container["args"]
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not here: apt-get install prometheus")
    for name, content in config(release, "prometheus").items():
        text = content.replace("/etc/prometheus", str(tmp_path))
        if name == "prometheus.yml":
            # Debian builds Prometheus without Kubernetes: all but the finding of pods is read.
            whole = yaml.safe_load(text)
            del whole["scrape_configs"][0]["kubernetes_sd_configs"]
            text = yaml.safe_dump(whole)
        (tmp_path / name).write_text(text)
    command = [tool, "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(list(tmp_path.glob('alerts-*')))} rule files found" in done.stdout


def test_tempo_takes_otlp(release: Release) -> None:
    """On both of its ports, and makes metrics only if it is told to."""
    text = yaml.safe_load(config(release, "tempo")["tempo.yaml"])
    protocols = text["distributor"]["receivers"]["otlp"]["protocols"]
    assert {name: each["endpoint"] for name, each in protocols.items()} == {
        "grpc": "0.0.0.0:4317",
        "http": "0.0.0.0:4318",
    }
    assert ("metrics_generator" in text) == ("overrides" in text)


def test_nobody_logs_in_with_a_known_password() -> None:
    """Without a secret there is no administrator; with one, its values are his."""

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
    ("setting", "complaint"),
    [
        ("grafna.anonymousRole=Viewer", "grafna"),
        ("grafana.anonymousRole=Owner", "anonymousRole"),
        ("prometheus.retention=long", "retention"),
        ("tempo.image.tag=latest", "tag"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(setting: str, complaint: str) -> None:
    """The schema is strict at every level."""
    done = rendered("--set", setting)
    assert done.returncode != 0
    assert complaint in done.stderr
