"""The effect of single values."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.charts.rendered import CHART, COMPONENTS, NAMESPACE, ROOT, Release, environment, render


@pytest.mark.parametrize("component", COMPONENTS)
def test_zero_replicas_are_rendered(component: str) -> None:
    """`replicas: 0` is not treated as unset."""
    release = render(values={component: {"replicas": 0}})
    assert release.deployment(component)["spec"]["replicas"] == 0


def test_a_model_overrides_with_zero_and_false() -> None:
    """0 and false in a model's `inference` section override the defaults."""
    own = {"replicas": 0, "maxNumWaiting": 0, "podDisruptionBudget": {"enabled": False}}
    values = {
        "inference": {"replicas": 3, "dtype": "bfloat16"},
        "models": [{"name": "demo"}, {"name": "other", "inference": own}],
    }
    release = render(values=values)
    first, second = release.component("Deployment", "inference")
    assert [first["spec"]["replicas"], second["spec"]["replicas"]] == [3, 0]
    variables = environment(second["spec"]["template"]["spec"]["containers"][0])
    assert variables["INFERENCE_MAX_NUM_WAITING"] == "0"
    assert variables["INFERENCE_DTYPE"] == "bfloat16"
    budgets = release.component("PodDisruptionBudget", "inference")
    assert [budget["metadata"]["name"] for budget in budgets] == ["weir-inference-demo"]


def test_an_autoscaled_deployment_has_no_replicas() -> None:
    """Otherwise each upgrade would reset the autoscaler's number."""
    for deployment in render("keda").of_kind("Deployment"):
        assert "replicas" not in deployment["spec"]


def test_each_service_has_one_autoscaler() -> None:
    """A HorizontalPodAutoscaler or a ScaledObject, never both."""
    hpa, keda = render("gpu"), render("keda")
    assert hpa.of_kind("HorizontalPodAutoscaler")
    assert not hpa.of_kind("ScaledObject")
    assert not keda.of_kind("HorizontalPodAutoscaler")
    targets = [each["spec"]["scaleTargetRef"]["name"] for each in keda.of_kind("ScaledObject")]
    assert sorted(targets) == sorted(d["metadata"]["name"] for d in keda.of_kind("Deployment"))


def test_an_hpa_uses_custom_metrics_if_enabled() -> None:
    """Engines scale on waiting requests and KV cache usage, other services on requests."""
    values = {
        "autoscaling": {"customMetrics": True},
        "inference": {"autoscaling": {"enabled": True}},
    }
    release = render("gpu", values={**values, "models": [{"name": "demo"}]})
    found = {
        scaler["metadata"]["name"]: [
            metric["pods"]["metric"]["name"] if "pods" in metric else metric["resource"]["name"]
            for metric in scaler["spec"]["metrics"]
        ]
        for scaler in release.of_kind("HorizontalPodAutoscaler")
    }
    assert found == {
        "weir-gateway": ["cpu", "gateway_num_streams_active"],
        "weir-orchestrator": ["cpu", "orchestrator_num_requests_running"],
        "weir-tokenizer-demo": ["cpu", "tokenizer_num_requests_running"],
        "weir-inference-demo": [
            "inference_kv_cache_usage",
            "inference_num_tokens_waiting",
            "inference_num_requests_waiting",
        ],
    }


def test_a_sleeping_model_is_woken_by_the_requests_for_it() -> None:
    """KEDA counts those of this model only, the refused ones too; the orchestrator holds some."""
    release = render("keda", values={"models": [{"name": "demo"}, {"name": "org/b.c"}]})
    scaled = release.named("ScaledObject", "weir-inference-org-b-c")["spec"]
    assert (scaled["minReplicaCount"], scaled["cooldownPeriod"]) == (0, 600)
    running, arrived, *others = [each["metadata"] for each in scaled["triggers"]]
    pods = 'namespace="prod",pod=~"weir-orchestrator-[0-9a-z]+-[0-9a-z]+",model="org/b.c"'
    assert running["query"] == f"sum(orchestrator_num_model_requests{{{pods}}})"
    assert arrived["query"] == f"sum(increase(orchestrator_model_requests_total{{{pods}}}[1m]))"
    assert running["activationThreshold"] == arrived["activationThreshold"] == "0"
    # As many requests as an engine runs at once are the share of one engine.
    assert running["threshold"] == "64"
    assert all("model=" not in each["query"] for each in others)
    assert variables_of(release, "orchestrator")["ORCHESTRATOR_WAKE_HOLD_SECONDS"] == "120"
    awake = variables_of(render("minimal"), "orchestrator")
    assert not [name for name in awake if "WAKE" in name]
    assert "cooldownPeriod" not in release.named("ScaledObject", "weir-gateway")["spec"]


@pytest.mark.parametrize(
    ("orchestrators", "engines", "given", "expected"),
    [
        (2, 2, "auto", "true"),
        (1, 2, "auto", "false"),
        (2, 1, "auto", "false"),
        (1, 1, "always", "true"),
        (2, 2, "never", "false"),
    ],
)
def test_several_orchestrators_follow_the_caches_of_several_engines(
    orchestrators: int, engines: int, given: str, expected: str
) -> None:
    """With one of either there is nothing to agree about."""
    values = {
        "orchestrator": {"replicas": orchestrators, "routing": {"followKvEvents": given}},
        "inference": {"replicas": engines},
    }
    variables = variables_of(render(values=values), "orchestrator")
    assert variables["ORCHESTRATOR_FOLLOW_KV_EVENTS"] == expected


def test_gateways_find_one_another() -> None:
    """By a headless Service that lists those that drain, whose streams still run."""
    release = render("tls")
    variables = variables_of(release, "gateway")
    name, _, port = variables["GATEWAY_PEERS_HOST"].partition(":")
    service = release.named("Service", name)["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert [each["port"] for each in service["ports"]] == [int(port)]
    certificate = release.named("Certificate", "weir-gateway")["spec"]
    assert name in certificate["dnsNames"]


def variables_of(release: Release, component: str) -> dict[str, str]:
    """The environment of a component's container."""
    pod = release.deployment(component)["spec"]["template"]["spec"]
    return environment(pod["containers"][0])


def test_gpu_values_set_all_that_gpus_need() -> None:
    """Resource, CUDA image, runtime class, shared memory, and a rollout without surge."""
    spec = render("gpu").deployment("inference")["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith("-cuda")
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    others = [
        d for d in render("gpu").of_kind("Deployment") if d != render("gpu").deployment("inference")
    ]
    assert all("runtimeClassName" not in d["spec"]["template"]["spec"] for d in others)


def test_each_model_has_an_engine_and_a_tokenizer() -> None:
    """Engines have their model's name; the orchestrator maps each model to its tokenizer."""
    release = render("multi-model")
    names = [
        environment(each["spec"]["template"]["spec"]["containers"][0])["INFERENCE_MODEL_NAME"]
        for each in release.component("Deployment", "inference")
    ]
    assert sorted(names) == ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "demo"]
    variables = environment(
        release.deployment("orchestrator")["spec"]["template"]["spec"]["containers"][0]
    )
    assert dict(each.split("=") for each in variables["TOKENIZER_HOST"].split(",")) == {
        "demo": "weir-tokenizer-demo:50052",
        "Qwen/Qwen3-0.6B": "weir-tokenizer-qwen-qwen3-0-6b:50052",
        "Qwen/Qwen3-4B": "weir-tokenizer-qwen-qwen3-0-6b:50052",
    }
    services = {each["metadata"]["name"] for each in release.of_kind("Service")}
    engines = dict(each.split("=") for each in variables["INFERENCE_HOST"].split(","))
    assert sorted(engines) == sorted(names)
    assert {each.partition(":")[0] for each in engines.values()} < services


def test_a_model_from_the_hub_is_downloaded_once() -> None:
    """To a kept volume, which the engine mounts read-only; the engine is offline."""
    release = render("gpu")
    pod = release.deployment("inference")["spec"]["template"]["spec"]
    (download,) = pod["initContainers"]
    container = pod["containers"][0]
    (claim,) = release.of_kind("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    variables = environment(container)
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert f"--folder={variables['INFERENCE_MODEL']}" in download["args"]
    token = {"secretKeyRef": {"name": "hugging-face", "key": "token"}}
    assert {"name": "HF_TOKEN", "valueFrom": token} in download["env"]


PROXIED: dict[str, Any] = {
    "egressProxy": {"url": "http://proxy.example.org:3128"},
    "caBundle": {"configMap": "company-ca", "key": "all.pem"},
    "pod": {
        "extraEnv": [{"name": "HF_HUB_DOWNLOAD_TIMEOUT", "value": "60"}],
        "extraVolumeMounts": [{"name": "netrc", "mountPath": "/netrc"}],
        "extraVolumes": [{"name": "netrc", "secret": {"secretName": "netrc"}}],
    },
}


@pytest.mark.parametrize("component", ["inference", "tokenizer"])
def test_a_download_uses_the_proxy_and_the_ca_bundle(component: str) -> None:
    """It also has `extraEnv`, after the chart's variables, and its mounts exist as volumes."""
    pod = render("gpu", values=PROXIED).deployment(component)["spec"]["template"]["spec"]
    (download,) = pod["initContainers"]
    variables = environment(download)
    assert variables["HTTPS_PROXY"] == variables["HTTP_PROXY"] == "http://proxy.example.org:3128"
    assert ".svc" in variables["NO_PROXY"]
    assert variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == "/etc/weir/ca/all.pem"
    assert download["env"][-1] == PROXIED["pod"]["extraEnv"][0]
    mounted = {mount["name"] for mount in download["volumeMounts"]}
    assert mounted >= {"ca-bundle", "netrc"}
    assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_the_orchestrator_searches_the_web_through_the_proxy() -> None:
    """In upper case, which gRPC does not read; the other services have no proxy."""
    variables = {
        name: {each["name"] for each in container.get("env", [])}
        for name, container in render("minimal", values=PROXIED).containers()
    }
    proxied = {name for name, names in variables.items() if "HTTPS_PROXY" in names}
    assert proxied == {"weir-orchestrator/orchestrator"}
    for names in variables.values():
        assert not names & {"http_proxy", "https_proxy", "grpc_proxy"}


def test_external_addresses_replace_the_models() -> None:
    """With both addresses set the list of models may be empty."""
    values = {
        "models": [],
        "orchestrator": {
            "tokenizerAddress": "tokenizer.other:50052",
            "inferenceAddress": "10.0.0.7:50053,10.0.0.8:50053",
        },
    }
    release = render(values=values)
    container = release.deployment("orchestrator")["spec"]["template"]["spec"]["containers"][0]
    assert environment(container)["TOKENIZER_HOST"] == "tokenizer.other:50052"
    assert environment(container)["INFERENCE_HOST"] == "10.0.0.7:50053,10.0.0.8:50053"
    assert not release.component("Deployment", "inference")


def test_traces_are_exported_to_the_endpoint() -> None:
    """OpenTelemetry's variables, with the pod's name; without an endpoint the exporter is none."""
    variables = environment(
        render("gpu").deployment("gateway")["spec"]["template"]["spec"]["containers"][0]
    )
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://tempo.observability:4317"
    assert variables["OTEL_TRACES_SAMPLER_ARG"] == "0.1"
    by_default = environment(
        render(values={"telemetry": {"endpoint": "http://tempo:4317"}}).deployment("gateway")[
            "spec"
        ]["template"]["spec"]["containers"][0]
    )
    assert by_default["OTEL_TRACES_SAMPLER"] == "parentbased_ratelimited"
    assert by_default["OTEL_TRACES_SAMPLER_ARG"] == "1"
    assert "k8s.pod.name=$(POD_NAME)" in variables["OTEL_RESOURCE_ATTRIBUTES"]
    without = environment(
        render("minimal").deployment("gateway")["spec"]["template"]["spec"]["containers"][0]
    )
    assert {name for name in without if name.startswith("OTEL_")} == {"OTEL_TRACES_EXPORTER"}


def test_certificates_name_the_services() -> None:
    """A component's certificate has the names of its Services, and its pods mount it."""
    release = render("tls", "multi-model")
    certificates = {c["spec"]["secretName"]: c for c in release.of_kind("Certificate")}
    for service in release.of_kind("Service"):
        component = service["metadata"]["labels"]["app.kubernetes.io/component"]
        names = certificates[f"weir-{component}-tls"]["spec"]["dnsNames"]
        name = service["metadata"]["name"]
        if component != "gateway":
            assert {name, f"{name}.{NAMESPACE}.svc"} <= set(names)
    for deployment in release.of_kind("Deployment"):
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        (secret,) = [v["secret"]["secretName"] for v in volumes if v["name"] == "tls"]
        assert secret in certificates


def test_the_test_pod_checks_every_running_engine() -> None:
    """Its arguments name the models with replicas, and Tempo's address."""
    args = render("multi-model").named("Pod", "weir-test")["spec"]["containers"][0]["args"]
    assert [each for each in args if each.startswith("--model=")] == [
        "--model=demo",
        "--model=Qwen/Qwen3-0.6B",
    ]
    args = render("gpu").named("Pod", "weir-test")["spec"]["containers"][0]["args"]
    assert "--traces=http://tempo.observability:3200" in args


@pytest.mark.parametrize(
    ("major", "policies"),
    [(3, "before-hook-creation"), (4, "before-hook-creation,hook-succeeded,hook-failed")],
)
def test_an_uninstalled_release_leaves_no_test_objects(major: int, policies: str) -> None:
    """The script belongs to the release; Helm 4 deletes the pod after each test.

    Helm 3 reads the log of `helm test --logs` after the deletion, so it keeps the pod.
    """
    release = render("minimal", major=major)
    hooks = [m for m in release.manifests if "helm.sh/hook" in m["metadata"].get("annotations", {})]
    assert [each["kind"] for each in hooks] == ["Pod"]
    assert hooks[0]["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == policies
    (volume,) = hooks[0]["spec"]["volumes"]
    assert release.named("ConfigMap", volume["configMap"]["name"])["data"].keys() == {
        "helm_test.py"
    }


def test_dashboards_and_alerts_are_those_of_the_folders() -> None:
    """Each dashboard is a labelled ConfigMap; all alerts are in the PrometheusRule."""
    values = {"metrics": {"dashboards": {"enabled": True, "labels": {"grafana_dashboard": "1"}}}}
    values["metrics"]["prometheusRule"] = {"enabled": True}
    release = render(values=values)
    maps = [m for m in release.of_kind("ConfigMap") if m["metadata"]["name"] != "weir-test-script"]
    shipped = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert {name: text for each in maps for name, text in each["data"].items()} == shipped
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in maps)
    files = sorted((CHART / "alerts").glob("*.yaml"))
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    rules = release.of_kind("PrometheusRule")
    assert [group for rule in rules for group in rule["spec"]["groups"]] == groups


def test_the_kind_cluster_maps_the_gateways_port() -> None:
    """kind-config.yaml maps the NodePort of ci/kind.yaml, on loopback."""
    (node,) = yaml.safe_load((ROOT / "kind-config.yaml").read_text())["nodes"]
    (mapping,) = node["extraPortMappings"]
    (port,) = render("kind").named("Service", "weir-gateway")["spec"]["ports"]
    assert port["nodePort"] == mapping["containerPort"]
    assert mapping["listenAddress"] == "127.0.0.1"


@pytest.mark.parametrize("task", ["A laptop", "One GPU", "Many GPUs with vLLM", "Air-gapped"])
def test_the_values_by_task_render(task: str) -> None:
    """Each block of the guide is a complete values file, which names the model that it serves."""
    guide = (ROOT / "docs" / "deploy.md").read_text().partition("## On a kind cluster")[0]
    block = re.search(rf"\*\*{task}\*\*.*?```yaml\n(.*?)```", guide, re.DOTALL)
    assert block is not None
    values = yaml.safe_load(block[1])
    release = render(values=values)
    (pod,) = release.of_kind("Pod")
    served = [each for each in pod["spec"]["containers"][0]["args"] if "--model=" in each]
    assert served == [f"--model={model['name']}" for model in values["models"]]


def test_the_deployment_guide_names_existing_targets() -> None:
    """Every `make TARGET` in docs/deploy.md is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    guide = (ROOT / "docs" / "deploy.md").read_text()
    named = set(re.findall(r"make ([a-z][a-z.-]+)", guide)) - {"images.tar"}
    assert {"kind-up", "kind-load", "deploy", "kind-test", "kind-down"} <= named
    assert [target for target in sorted(named) if f"\n{target}:" not in makefile] == []


@pytest.mark.parametrize("affinity", ["ClientIP", "None"])
def test_session_affinity_is_configurable(affinity: str) -> None:
    """With ClientIP the Service and the Ingress (by cookie) keep a client on one gateway."""
    release = render("tls", values={"gateway": {"service": {"sessionAffinity": affinity}}})
    spec = release.named("Service", "weir-gateway")["spec"]
    annotations = release.named("Ingress", "weir-gateway")["metadata"]["annotations"]
    assert spec["sessionAffinity"] == affinity
    has_affinity = affinity == "ClientIP"
    assert ("sessionAffinityConfig" in spec) == has_affinity
    assert ("nginx.ingress.kubernetes.io/affinity" in annotations) == has_affinity


@pytest.mark.parametrize("wanted", [False, True])
def test_a_route_keeps_its_sessions_if_asked(wanted: bool) -> None:
    """By a cookie of the Gateway; by default the field, which is experimental, is absent."""
    values = {"gateway": {"httpRoute": {"sessionPersistence": wanted}}}
    (route,) = render("tls", values=values).of_kind("HTTPRoute")
    (rule,) = route["spec"]["rules"]
    cookie = {"sessionName": "weir", "type": "Cookie"}
    assert rule.get("sessionPersistence") == (cookie if wanted else None)


@pytest.mark.parametrize(
    ("gateway", "hosts"),
    [
        ({}, "internal,weir-gateway.prod"),
        (
            {
                "allowAnonymous": "always",
                "ingress": {"enabled": True, "hosts": ["a.example", "b.example"]},
                "httpRoute": {"hostnames": ["b.example", "*.c.example"]},
            },
            "internal,weir-gateway.prod,a.example,b.example,*.c.example",
        ),
        ({"allowedHosts": ["d.example"]}, "d.example"),
        ({"apiKeys": {"existingSecret": "keys"}}, None),
    ],
)
def test_a_gateway_without_keys_accepts_only_its_own_hosts(
    gateway: dict[str, object], hosts: str | None
) -> None:
    """Against DNS rebinding: internal names, the Service, and the hosts of Ingress and route."""
    release = render("minimal", values={"gateway": gateway, "tests": {"enabled": False}})
    container = release.deployment("gateway")["spec"]["template"]["spec"]["containers"][0]
    assert environment(container).get("GATEWAY_ALLOWED_HOSTS") == hosts
