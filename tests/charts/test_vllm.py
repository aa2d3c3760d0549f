"""vLLM engines, engines outside the release, and InferencePools."""

from __future__ import annotations

from typing import Any

import pytest

from tests.charts.rendered import Manifest, Release, RenderError, environment, render

Values = dict[str, Any]


def engine(release: Release, name: str) -> Manifest:
    """The container of a vLLM Deployment."""
    (container,) = release.named("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return dict(container)


def model(**values: Any) -> Values:
    return {"name": "m", "engine": "vllm", "source": "pvc", "pvc": {"claim": "c"}, **values}


def test_the_orchestrator_gets_the_address_of_every_engine() -> None:
    """With the scheme of the protocol; addresses of external engines are passed on."""
    container = render("vllm", values={"models": [*MIXED]}).deployment("orchestrator")
    hosts = environment(container["spec"]["template"]["spec"]["containers"][0])["INFERENCE_HOST"]
    assert hosts.split(",") == [
        "demo=weir-inference-demo:50053",
        "a=vllm+http://weir-vllm-a:8000",
        "b=vllm+grpc://weir-vllm-b:50051",
        "vllm+http://llama.models.svc:8000",
        "10.0.0.7:50053",
    ]


MIXED: list[Values] = [
    {"name": "demo"},
    model(name="a"),
    model(name="b", vllm={"protocol": "grpc"}),
    {
        "name": "c",
        "engine": "external",
        "external": {"addresses": ["vllm+http://llama.models.svc:8000", "10.0.0.7:50053"]},
        "tokenizer": "a",
    },
]


def test_the_addresses_lead_to_the_services_ports() -> None:
    """Each Service of vLLM is headless, and its port is the container's."""
    release = render("vllm", values={"models": [*MIXED]})
    for name, protocol, port in (("weir-vllm-a", "http", 8000), ("weir-vllm-b", "grpc", 50051)):
        service = release.named("Service", name)["spec"]
        assert service["clusterIP"] == "None"
        (entry,) = service["ports"]
        assert (entry["port"], entry["targetPort"]) == (port, protocol)
        container = engine(release, name)
        assert container["ports"] == [{"name": protocol, "containerPort": port}]
        assert f"--port={port}" in container["args"]
        assert ("--grpc" in container["args"]) == (protocol == "grpc")


def test_a_vllm_engine_has_its_image_gpus_and_shared_memory() -> None:
    """Image by tag and digest, GPUs, tensor parallelism over them, and /dev/shm."""
    release = render("vllm")
    container = engine(release, "weir-vllm-qwen-qwen3-32b")
    assert container["image"] == "vllm/vllm-openai:v0.32.0"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert {
        "--served-model-name=Qwen/Qwen3-32B",
        "--tensor-parallel-size=4",
        "--pipeline-parallel-size=1",
        "--max-model-len=32768",
        "--max-num-queued-reqs=256",
        "--quantization=fp8",
        "--otlp-traces-endpoint=http://tempo.observability:4317",
    } < set(container["args"])
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert environment(container)["HF_HUB_OFFLINE"] == "1"
    image = engine(release, "weir-vllm-qwen3-8b")["image"]
    assert image == f"registry.example.com/weir/vllm-grpc:v0.32.0@sha256:{'e' * 64}"
    mirrored = render("vllm", values={"global": {"imageRegistry": "mirror:5000"}})
    assert engine(mirrored, "weir-vllm-qwen3-8b")["image"].startswith("mirror:5000/weir/vllm-grpc:")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_vllm_has_time_to_load_and_a_liveness_probe(protocol: str) -> None:
    """Its health fails if its engine processes have died, although the server still answers."""
    values = {"models": [model(vllm={"protocol": protocol, "startupSeconds": 3601})]}
    container = engine(render(values=values), "weir-vllm-m")
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3602
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if protocol == "grpc":
            assert container[probe]["grpc"] == {
                "port": 50051,
                "service": "vllm.grpc.engine.VllmEngine",
            }
        else:
            assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}


@pytest.mark.parametrize(("protocol", "slept"), [("http", 10), ("grpc", 70)])
def test_vllm_drains_like_the_other_services(protocol: str, slept: int) -> None:
    """By HTTP vLLM waits for its streams itself; by gRPC the preStop hook waits for them."""
    values = {"drain": {"seconds": 60}, "models": [model(vllm={"protocol": protocol})]}
    release = render(values=values)
    spec = release.named("Deployment", "weir-vllm-m")["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": slept}}}
    assert ("--shutdown-timeout=60" in container["args"]) == (protocol == "http")
    assert spec["terminationGracePeriodSeconds"] == 80


@pytest.mark.parametrize(("host", "http", "grpc"), [("[::]", "::", "[::]"), ("0.0.0.0",) * 3])
def test_vllm_listens_on_the_chosen_address(host: str, http: str, grpc: str) -> None:
    """Its HTTP server takes an address without brackets, its gRPC server one with them."""
    for protocol, wanted in (("http", http), ("grpc", grpc)):
        values = {"listenHost": host, "models": [model(vllm={"protocol": protocol})]}
        assert f"--host={wanted}" in engine(render(values=values), "weir-vllm-m")["args"]


def test_an_engine_on_several_nodes_is_a_leader_worker_set() -> None:
    """The leader serves; the workers find it by the controller's variables."""
    release = render("lws")
    (workers,) = release.of_kind("LeaderWorkerSet")
    group = workers["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 2
    leader, worker = (group[f"{role}Template"] for role in ("leader", "worker"))
    args = {
        name: template["spec"]["containers"][0]["args"]
        for name, template in (("leader", leader), ("worker", worker))
    }
    for each in args.values():
        assert {"--tensor-parallel-size=8", "--pipeline-parallel-size=2"} < set(each)
        assert {"--nnodes=$(LWS_GROUP_SIZE)", "--node-rank=$(LWS_WORKER_INDEX)"} < set(each)
        assert "--master-addr=$(LWS_LEADER_ADDRESS)" in each
    assert "--port=8000" in args["leader"]
    assert "--headless" in args["worker"]
    (service,) = release.component("Service", "vllm")
    selector = service["spec"]["selector"].items()
    assert selector <= leader["metadata"]["labels"].items()
    assert not selector <= worker["metadata"]["labels"].items()
    # The controller creates a headless Service with the set's name.
    assert workers["metadata"]["name"] != service["metadata"]["name"]
    # Without any of its pods an engine cannot finish its streams, so all wait for the drain.
    waits = [t["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"] for t in (leader, worker)]
    assert waits == [{"seconds": 35}] * 2


def test_prometheus_scrapes_vllm_once() -> None:
    """By the PodMonitor, where vLLM has metrics; the ServiceMonitor does not select its port."""
    release = render("vllm")
    (monitor,) = release.of_kind("PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "http"
    (services,) = release.of_kind("ServiceMonitor")
    scraped = {each["port"] for each in services["spec"]["endpoints"]}
    for service in release.component("Service", "vllm"):
        assert not {port["name"] for port in service["spec"]["ports"]} & scraped
    annotations = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["annotations"]
        for each in release.component("Deployment", "vllm")
    }
    assert annotations["weir-vllm-qwen-qwen3-32b"]["prometheus.io/port"] == "8000"
    assert "prometheus.io/port" not in annotations["weir-vllm-qwen3-8b"]


def test_an_external_model_has_a_tokenizer_only() -> None:
    """No engine, and no volume for weights; the tokenizer downloads its own files."""
    values = {"models": [{**MIXED[3], "tokenizer": "", "source": "hub", "hub": {"id": "a/b"}}]}
    release = render(values=values)
    components = {
        d["metadata"]["labels"]["app.kubernetes.io/component"]
        for d in release.of_kind("Deployment")
    }
    assert components == {"gateway", "orchestrator", "tokenizer"}
    assert not release.of_kind("PersistentVolumeClaim")
    assert release.deployment("tokenizer")["spec"]["template"]["spec"]["initContainers"]
    assert "--model=c" in release.named("Pod", "weir-test")["spec"]["containers"][0]["args"]


def test_inference_pools_select_the_engines_by_protocol() -> None:
    """gRPC engines by HTTP/2 without TLS, vLLM's HTTP servers by HTTP."""
    release = render("inferencepool")
    pods = {name: template["metadata"]["labels"] for name, template in release.pods}
    expected = {
        "weir-pool-demo": ("weir-inference-demo", 50053, "kubernetes.io/h2c", "demo-epp"),
        "weir-pool-qwen3-8b": ("weir-vllm-qwen3-8b", 8000, "http", "qwen-epp"),
    }
    for pool in release.of_kind("InferencePool"):
        pod, port, protocol, picker = expected.pop(pool["metadata"]["name"])
        spec = pool["spec"]
        selector = spec["selector"]["matchLabels"].items()
        assert [name for name, labels in pods.items() if selector <= labels.items()] == [pod]
        assert spec["targetPorts"] == [{"number": port}]
        assert spec["appProtocol"] == protocol
        assert spec["endpointPickerRef"]["name"] == picker
    assert expected == {}


MISTAKES: dict[str, tuple[Values, str]] = {
    "vllm with the demo model": (
        {"models": [{"name": "m", "engine": "vllm"}]},
        "set source to hub",
    ),
    "external without address": (
        {"models": [{"name": "m", "engine": "external", "source": "pvc", "pvc": {"claim": "c"}}]},
        "set external.addresses",
    ),
    "external without tokenizer": (
        {"models": [{"name": "m", "engine": "external", "external": {"addresses": ["a:1"]}}]},
        "the source of its tokenizer is demo",
    ),
    "addresses of another engine": (
        {"models": [{"name": "m", "external": {"addresses": ["a:1"]}}]},
        "set engine to external",
    ),
    "parallel sizes": (
        {"models": [model(vllm={"gpu": {"count": 4}, "tensorParallelSize": 2})]},
        "pipelineParallelSize is 2, but vllm.gpu.count × nodes is 4",
    ),
    "shared volume": (
        {"models": [model(source="hub", hub={"id": "a/b"}, vllm={"replicas": 2})]},
        "set hub.accessMode to ReadWriteMany",
    ),
    "pool without picker": (
        {"models": [{"name": "m", "inferencePool": {"enabled": True}}]},
        "the Service of the endpoint picker",
    ),
    "pool without callers": (
        {"models": [{"name": "m", "inferencePool": {"enabled": True}}]},
        "list the Gateway's proxies",
    ),
}


@pytest.mark.parametrize(("values", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_invalid_engines_are_refused(values: Values, words: str) -> None:
    """The message says how to fix the values."""
    with pytest.raises(RenderError, match="Invalid combination of values") as failure:
        render(values=values)
    assert words in str(failure.value)


CLUSTER = ("apiregistration.k8s.io/v1",)
NEEDED = (
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "gateway.networking.k8s.io/v1/HTTPRoute",
    "cert-manager.io/v1/Certificate",
    "keda.sh/v1alpha1/ScaledObject",
    "leaderworkerset.x-k8s.io/v1/LeaderWorkerSet",
    "inference.networking.k8s.io/v1/InferencePool",
)


@pytest.mark.parametrize("major", [3, 4])
def test_kinds_that_the_cluster_lacks_are_refused_by_name(major: int) -> None:
    """Each missing kind is named; with the kinds, and without a cluster, the chart renders."""
    sets = ("gpu", "tls", "keda", "lws")
    pool = {"enabled": True, "endpointPicker": {"name": "picker"}}
    callers = [{"podSelector": {}}]
    values = {"inferencePool": pool, "networkPolicy": {"inferencePoolFrom": callers}}
    with pytest.raises(RenderError, match="Invalid combination of values") as failure:
        render(*sets, values=values, api_versions=CLUSTER, major=major)
    for kind in NEEDED:
        assert f"needs {kind}, which this cluster does not have: install" in str(failure.value)
    render(*sets, values=values, api_versions=(*CLUSTER, *NEEDED), major=major)
