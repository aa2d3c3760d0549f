"""Values are documented, and invalid ones are refused with a message."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.chart.values import UncommentedKeyError, read_values
from scripts.generate_chart import stale
from tests.charts.rendered import CHART, RenderError, render

HUB = {"source": "hub", "hub": {"id": "a/b"}}

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "open to all": (
        {"gateway": {"service": {"type": "LoadBalancer"}}},
        "gateway.service.type LoadBalancer give clients outside the cluster access without a key",
    ),
    "never anonymous": ({"gateway": {"allowAnonymous": "never"}}, "a secret with a key file"),
    "no key for the test": (
        {"gateway": {"apiKeys": {"existingSecret": "keys"}}},
        "set tests.apiKey.existingSecret",
    ),
    "route to https": (
        {
            "gateway": {
                "allowAnonymous": "always",
                "tls": {"existingSecret": "s"},
                "httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]},
            }
        },
        "terminate TLS at the Gateway",
    ),
    "no model": ({"models": []}, "list a model"),
    "same name": ({"models": [{"name": "a"}, {"name": "a"}]}, "a unique name"),
    "same slug": ({"models": [{"name": "a.b"}, {"name": "a-b"}]}, "use names that differ"),
    "hub without id": ({"models": [{"name": "a", "source": "hub"}]}, "set hub.id"),
    "pvc without claim": ({"models": [{"name": "a", "source": "pvc"}]}, "set pvc.claim"),
    "unknown tokenizer": (
        {"models": [{"name": "a", "tokenizer": "b"}]},
        "tokenizer is b, but no model of that name",
    ),
    "shared volume": (
        {"models": [{"name": "a", **HUB, "inference": {"replicas": 2}}]},
        "set hub.accessMode to ReadWriteMany",
    ),
    "cuda without gpu": ({"inference": {"device": "cuda"}}, "set inference.gpu.count"),
    "idle gpu": ({"inference": {"device": "cpu", "gpu": {"count": 1}}}, "would be unused"),
    "keda without prometheus": (
        {"autoscaling": {"engine": "keda"}, "networkPolicy": {"enabled": False}},
        "set autoscaling.prometheusAddress",
    ),
    "hpa to zero": (
        {
            "autoscaling": {"customMetrics": True},
            "inference": {"autoscaling": {"enabled": True, "minReplicas": 0}},
        },
        "only KEDA scales to zero: set autoscaling.engine to keda",
    ),
    "no metric to scale on": (
        {"inference": {"autoscaling": {"enabled": True}}},
        "has no metric to scale on",
    ),
    "cpu without request": (
        {"gateway": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}},
        "set gateway.resources.requests.cpu",
    ),
    "minimum above maximum": (
        {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 11}}},
        "lower minReplicas or raise maxReplicas",
    ),
    "stuck rollout": (
        {"tokenizer": {"rollout": {"maxSurge": 0}}},
        "a rollout cannot replace any pod",
    ),
    "tls without certificates": ({"tls": {"enabled": True}}, "tls.enabled needs certificates"),
    "tls twice": (
        {"tls": {"enabled": True, "existingSecret": "s", "certManager": {"enabled": True}}},
        "clear the other",
    ),
    "tls off": ({"tls": {"existingSecret": "s"}}, "set it to true"),
    "ingress without host": ({"gateway": {"ingress": {"enabled": True}}}, "at least one host name"),
    "route without parent": ({"gateway": {"httpRoute": {"enabled": True}}}, "list the Gateway"),
    "node port": ({"gateway": {"service": {"nodePort": 30080}}}, "set the type to NodePort"),
    "index without claim": (
        {"orchestrator": {"index": {"source": "pvc"}}},
        "set orchestrator.index.existingClaim",
    ),
    "encoder that no engine serves": (
        {"models": [{"name": "demo"}], "orchestrator": {"embedding": {"model": "minilm"}}},
        "embedding.model is minilm, but models has demo",
    ),
    "encoder without name": (
        {"orchestrator": {"embedding": {"url": "https://h/v1"}}},
        "embedding.model is empty",
    ),
    "key without server": (
        {"orchestrator": {"embedding": {"model": "demo", "existingSecret": "s"}}},
        "set the URL of the server that needs the key",
    ),
    "reranker without name": (
        {"orchestrator": {"rerank": {"url": "https://h/v1"}}},
        "name the model of the server",
    ),
    "reranker that no engine serves": (
        {"models": [{"name": "demo"}], "orchestrator": {"rerank": {"model": "cross"}}},
        "rerank.model is cross, but models has demo",
    ),
    "reranker's key without server": (
        {"orchestrator": {"rerank": {"model": "demo", "existingSecret": "s"}}},
        "rerank.existingSecret is set but url is not",
    ),
    "query without endpoint": ({"telemetry": {"queryUrl": "http://t:3200"}}, "clear queryUrl"),
    "metrics without a scraper": (
        {"metrics": {"serviceMonitor": {"enabled": True}}},
        "list Prometheus there",
    ),
}

TYPOS: dict[str, tuple[dict[str, Any], str]] = {
    "top": ({"gatewayy": {}}, r"gatewayy"),
    "nested": ({"gateway": {"image": {"tagg": "1"}}}, r"gateway.image.*tagg"),
    "in a list": ({"models": [{"name": "a", "hub": {"idd": "x/y"}}]}, r"models.0.hub.*idd"),
    "in an override": (
        {"models": [{"name": "a", "inference": {"replica": 1}}]},
        r"models.0.inference.*replica",
    ),
    "in a Kubernetes type": (
        {"gateway": {"pod": {"tolerations": [{"kee": "x"}]}}},
        r"gateway.pod.tolerations.0.*kee",
    ),
    "type": ({"drain": {"seconds": "thirty"}}, r"drain.seconds.*integer"),
    "choice": ({"log": {"level": "VERBOSE"}}, r"log.level"),
    "latest": ({"image": {"tag": "latest"}}, r"image.tag"),
    "digest": ({"gateway": {"image": {"digest": "md5:1"}}}, r"gateway.image.digest"),
}


def test_generated_files_are_fresh() -> None:
    """Schema, README and list of images match values.yaml; if not, run `make chart`."""
    assert stale(CHART) == []


def test_every_key_has_a_comment(tmp_path: Any) -> None:
    """A key without a comment is an error that names it."""
    values = tmp_path / "values.yaml"
    values.write_text("# Comment.\na: 1\n\nb:\n  # Comment.\n  c: 1\n  d: 2\n")
    with pytest.raises(UncommentedKeyError, match=r"^b, b\.d$"):
        read_values(values)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if "object" in (schema.get("type"), *(schema.get("type") or ())):
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


def test_the_schema_is_strict_at_every_level() -> None:
    """Each object forbids additional keys, or gives their type."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = list(objects(schema))
    assert len(found) > 100
    loose = [each for each in found if each.get("additionalProperties", True) is True]
    assert loose == []


@pytest.mark.parametrize(("values", "words"), TYPOS.values(), ids=TYPOS.keys())
def test_typos_are_refused_with_their_path(values: dict[str, Any], words: str) -> None:
    """An unknown key or an invalid value fails with its path."""
    with pytest.raises(RenderError) as failure:
        render(values=values)
    assert re.search(words, str(failure.value)), str(failure.value)


@pytest.mark.parametrize(("values", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_invalid_combinations_of_values_are_refused(values: dict[str, Any], words: str) -> None:
    """The message says how to fix the values."""
    with pytest.raises(RenderError, match="Invalid combination of values") as failure:
        render(values=values)
    assert words in str(failure.value)


def test_all_mistakes_are_reported_at_once() -> None:
    """One message lists all invalid combinations."""
    values = {"tls": {"enabled": True}, "models": [], "gateway": {"ingress": {"enabled": True}}}
    with pytest.raises(RenderError) as failure:
        render(values=values)
    assert str(failure.value).count("\n  - ") == 4
