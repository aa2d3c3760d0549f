"""The model that answered, in metrics and in the access log line."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from mesh.errors import ErrorKind, MeshError
from tests.gateway.fakes import FakeOrchestrator, Script

USER = [{"role": "user", "content": "Hi"}]
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("/v1/chat/completions", "chat", {"messages": USER}),
    ("/v1/completions", "text_completion", {"prompt": "Hi"}),
    ("/v1/embeddings", "embeddings", {"input": "Hi"}),
    ("/v1/responses", "chat", {"input": "Hi", "store": False}),
    ("/v1/messages", "chat", {"messages": USER, "max_tokens": 9}),
    ("/api/v1/search", "search", {"query": "Hi"}),
]
GEN_AI = "gen_ai_server_"


def model_series() -> dict[tuple[str, str, str], float]:
    """The number of observations by metric, operation and model."""
    counts: dict[tuple[str, str, str], float] = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name.startswith(GEN_AI) and sample.name.endswith("_count"):
                labels = sample.labels
                operation, model = labels["gen_ai_operation_name"], labels["gen_ai_response_model"]
                key = (metric.name.removeprefix(GEN_AI), operation, model)
                counts[key] = counts.get(key, 0) + sample.value
    return counts


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("path", "operation", "body"), REQUESTS)
async def test_metrics_and_log_have_the_served_model(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    caplog: pytest.LogCaptureFixture,
    path: str,
    operation: str,
    body: dict[str, Any],
    streams: bool,
) -> None:
    """Also if the request names none."""
    if streams and path == "/v1/embeddings":
        return  # no such streams
    before = model_series()
    orchestrator.script = Script(deltas=("a", "b", "c"))
    stream = {"streaming" if "search" in path else "stream": True} if streams else {}
    with caplog.at_level(logging.INFO, "gateway.access"):
        response = await client.post(path, json={**body, **stream})
    assert response.status_code == 200, response.text
    [line] = [vars(record) for record in caplog.records if record.name == "gateway.access"]
    assert line["model"] == "fake"
    after = model_series()
    changed = {key for key, count in after.items() if count != before.get(key)}
    wanted = {("request_duration_seconds", operation, "fake")}
    if streams:
        wanted |= {
            (f"{metric}_seconds", operation, "fake")
            for metric in ("time_to_first_token", "time_per_output_token")
        }
    assert changed == wanted


@pytest.mark.parametrize(("path", "operation", "body"), REQUESTS)
async def test_a_refused_request_makes_no_series_without_a_model(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    path: str,
    operation: str,
    body: dict[str, Any],
) -> None:
    """It is in the counts by route and by kind of error."""
    before = model_series()
    labels = {"kind": "overloaded"}
    num_errors = REGISTRY.get_sample_value("gateway_errors_total", labels) or 0.0
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "full"))
    assert (await client.post(path, json=body)).status_code in (429, 529)
    assert model_series() == before
    assert REGISTRY.get_sample_value("gateway_errors_total", labels) == num_errors + 1
