"""The services of compose.yaml as pods, for machines without helm."""

from __future__ import annotations

from typing import Any

import yaml

from tests.images.base import ROOT

GRPC_PORTS = {"orchestrator": 50051, "tokenizer": 50052, "inference": 50053}
SERVICES = {
    "orchestrator": "mesh.v1.OrchestratorService",
    "tokenizer": "mesh.v1.TokenizerService",
    "inference": "mesh.v1.InferenceService",
}
TIMES = {"periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 150}


def compose_pods() -> dict[str, tuple[dict[str, Any], str]]:
    """For each component the spec of an equivalent pod, and the service's name."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return {
        service["build"]["dockerfile"].partition("/")[0]: (_spec(service), name)
        for name, service in compose["services"].items()
    }


def _spec(service: dict[str, Any]) -> dict[str, Any]:
    component = service["build"]["dockerfile"].partition("/")[0]
    container = {
        "name": component,
        "image": service["image"],
        "env": [
            {"name": name, "value": value} for name, value in service.get("environment", {}).items()
        ],
        "securityContext": {
            "readOnlyRootFilesystem": service["read_only"],
            "allowPrivilegeEscalation": "no-new-privileges:true" not in service["security_opt"],
            "capabilities": {"drop": service["cap_drop"]},
        },
        "volumeMounts": [{"name": path, "mountPath": path} for path in service["tmpfs"]],
        "resources": {},
        **_probes(component),
    }
    return {
        "containers": [container],
        "volumes": [
            {"name": path, "emptyDir": {"sizeLimit": "256Mi"}} for path in service["tmpfs"]
        ],
        "terminationGracePeriodSeconds": int(service["stop_grace_period"].removesuffix("s")),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _probes(component: str) -> dict[str, Any]:
    if component == "gateway":
        live, ready = ({"path": path, "port": "http"} for path in ("/livez", "/readyz"))
        return {
            "ports": [{"name": "http", "containerPort": 8080}],
            "startupProbe": {"httpGet": live, **TIMES},
            "readinessProbe": {"httpGet": ready, **TIMES},
            "livenessProbe": {"httpGet": live, **TIMES},
        }
    port = GRPC_PORTS[component]
    alive = {"grpc": {"port": port}, **TIMES}
    return {
        "ports": [
            {"name": "grpc", "containerPort": port},
            {"name": "metrics", "containerPort": 9464},
        ],
        "startupProbe": alive,
        "readinessProbe": {"grpc": {"port": port, "service": SERVICES[component]}, **TIMES},
        "livenessProbe": alive,
    }
