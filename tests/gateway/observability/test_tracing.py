"""The OpenTelemetry server span of a request."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, StatusCode

from gateway.keys.key_file import entry
from gateway.observability.tracing import http_span
from mesh.errors import ErrorKind, MeshError
from mesh.observability import semconv, telemetry, tracing
from mesh.observability.recording.tracer import RecordingProvider
from mesh.observability.semconv import Outcome
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.helpers import Served, eventually

SEARCH = {"query": "AI", "streaming": "true"}


def server_span(spans: InMemorySpanExporter) -> ReadableSpan:
    [span] = [
        span
        for span in spans.get_finished_spans()
        if span.kind is SpanKind.SERVER and "http.request.method" in (span.attributes or {})
    ]
    return span


async def test_the_span_of_a_stream_lasts_until_its_end(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, spans: InMemorySpanExporter
) -> None:
    """It has the route's name, HTTP attributes and the id, no query; the gRPC call is its child."""
    orchestrator.script = Script(seconds_before_delta=0.05)
    response = await client.get("/api/v1/search", params=SEARCH)
    span = server_span(spans)
    attributes = dict(span.attributes or {})
    assert span.name == "GET /api/v1/search"
    assert attributes["weir.request.id"] == response.headers["x-request-id"]
    assert attributes["http.route"] == attributes["url.path"] == "/api/v1/search"
    assert attributes["http.response.status_code"] == 200
    assert "AI" not in attributes.values()
    assert "url.query" not in attributes
    assert [event.name for event in span.events] == ["weir.first_token"]
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time >= 0.15e9
    assert span.status.status_code is StatusCode.UNSET
    [call] = [each for each in spans.get_finished_spans() if each.kind is SpanKind.CLIENT]
    assert call.parent is not None
    assert span.context is not None
    assert call.parent.span_id == span.context.span_id


@pytest.mark.parametrize(
    ("state", "forwarded"),
    [
        ("weir=held", "weir=held"),
        ("weir=unrecorded", "weir=held"),
        ("a=1, weir=unrecorded,b=2", "weir=held,a=1,b=2"),
        ("a=weir", "weir=held,a=weir"),
    ],
)
def test_a_client_cannot_leave_its_trace_undecided(
    state: str, forwarded: str, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weir's own entry in `tracestate` counts between its services only."""
    provider = RecordingProvider(
        Resource({}),
        ParentBased(ALWAYS_OFF),
        [SimpleSpanProcessor(spans)],
        InstrumentationScope("tests"),
        holds=True,
    )
    monkeypatch.setattr(telemetry, "tracer", provider.tracer)
    monkeypatch.setattr(telemetry, "holds", True)
    headers = {"traceparent": f"00-{7:032x}-{8:016x}-00", "tracestate": state}
    scope = {"method": "GET", "scheme": "http", "path": "/", "http_version": "1.1", "client": None}
    with http_span(scope, headers) as span:
        sent: list[tuple[str, str]] = []
        tracing.inject(sent, span)
        assert dict(sent)["tracestate"] == forwarded
        span.set_attribute(semconv.OUTCOME, Outcome.FAILED)
    assert [each.name for each in spans.get_finished_spans()] == ["GET"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ErrorKind.INTERNAL, StatusCode.ERROR), (ErrorKind.MODEL_NOT_FOUND, StatusCode.UNSET)],
)
async def test_only_server_errors_set_the_error_status(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    spans: InMemorySpanExporter,
    kind: ErrorKind,
    code: StatusCode,
) -> None:
    """A 5xx sets ERROR, a 4xx does not, by OpenTelemetry's conventions for server spans."""
    orchestrator.script = Script(refusal=MeshError(kind, "no"))
    await client.get("/api/v1/search", params=SEARCH)
    assert server_span(spans).status.status_code is code


async def test_a_mid_stream_failure_sets_the_error_status(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, spans: InMemorySpanExporter
) -> None:
    """The span is an error although the HTTP status is 200."""
    orchestrator.script = Script(failure=MeshError(ErrorKind.UNAVAILABLE, "lost"))
    await client.get("/api/v1/search", params=SEARCH)
    span = server_span(spans)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "unavailable"


async def test_probes_have_no_span(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    upstream: Served,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Probes are not traced, nor are the calls by which the gateway knows its readiness."""
    monkeypatch.setattr(telemetry, "follows_callers", True)  # as by default
    await upstream.server.set_ready(True)
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        await client.get(path)
    await eventually(lambda: orchestrator.num_listed > 0, "the gateway asks for problems")
    assert [each.name for each in spans.get_finished_spans()] == []


async def test_keys_are_never_in_spans(
    start_gateway: StartGateway, tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    """Spans contain neither valid nor invalid API keys."""
    path = tmp_path / "keys"
    path.write_text(entry("alice", "weir_sEcReT"))
    async with start_gateway(api_keys_file=str(path)) as server, client_of(server) as client:
        for key in ("weir_sEcReT", "weir_sEcReTx"):
            headers = {"authorization": f"Bearer {key}"}
            await client.get("/api/v1/search", params=SEARCH, headers=headers)
            await client.post("/v1/completions", json={"prompt": 1}, headers=headers)
    exported = [span.to_json() for span in spans.get_finished_spans()]
    assert len(exported) >= 4
    assert not [each for each in exported if "sEcReT" in each]
