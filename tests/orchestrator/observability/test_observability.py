"""Metrics, access log line and spans of a request."""

from __future__ import annotations

import logging

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from mesh.errors import MeshError
from mesh.rpc.channel import call_unary
from mesh.v1 import orchestrator_pb2
from mesh.v1.common_pb2 import SamplingParams
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.test_service import generate, request
from tests.samples import Change


async def test_a_request_is_counted_once() -> None:
    """Outcome, token counts, and one time to first token."""
    change = Change()
    async with orchestrator(FakeInference()) as running:
        events = await generate(running, request())
    usage = events[-1].finish.usage
    assert change.of("orchestrator_requests_total", method="Generate", outcome="ok") == 1
    assert change.of("orchestrator_time_to_first_token_seconds_count", method="Generate") == 1
    assert change.of("orchestrator_e2e_request_latency_seconds_count", method="Generate") == 1
    assert change.of("orchestrator_prompt_tokens_total") == usage.prompt_tokens
    assert change.of("orchestrator_generation_tokens_total") == usage.completion_tokens
    usages = {"gen_ai_operation_name": "text_completion", "gen_ai_response_model": "fake"}
    for kind, number in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
        assert (
            change.of("gen_ai_client_token_usage_sum", gen_ai_token_type=kind, **usages) == number
        )
    assert REGISTRY.get_sample_value("orchestrator_num_requests_running") == 0


async def test_failures_are_counted_by_kind() -> None:
    """An unknown model, and a refusal."""
    change = Change()
    async with orchestrator(FakeInference(), max_concurrent_requests=1) as running:
        with pytest.raises(MeshError):
            await generate(running, request(model="nobody"))
        with running.service._pipeline._admission.permit(), pytest.raises(MeshError):
            await generate(running, request())
    name = "orchestrator_requests_total"
    assert change.of(name, method="Generate", outcome="model_not_found") == 1
    assert change.of(name, method="Generate", outcome="refused") == 1
    assert change.of("orchestrator_refused_total", method="Generate", reason="limit") == 1
    assert change.of("orchestrator_refused_total") == 1


async def test_a_failover_is_counted() -> None:
    """Once per change of the engine."""
    change = Change()
    engine = FakeInference()
    engine.fail_after, engine.num_failing = 3, 1
    async with orchestrator(engine) as running:
        await generate(running, request())
    assert change.of("orchestrator_failovers_total") == 1
    assert change.of("orchestrator_replayed_tokens_total") == 3


@pytest.mark.parametrize(("stop", "code"), [([], "OK"), (["o"], "CANCELLED")])
async def test_a_call_to_an_engine_is_counted_by_how_it_ended(stop: list[str], code: str) -> None:
    """OK if it is read to its end; CANCELLED if a stop string ended it."""
    change = Change()
    engine = FakeInference()
    async with orchestrator(engine) as running:
        await generate(running, request(stop=stop))
    name = "mesh_rpc_client_duration_seconds_count"
    of = {"rpc_service": "mesh.v1.InferenceService", "rpc_method": "Generate"}
    assert change.of(name, code=code, **of) == 1
    assert change.of(name, **of) == 1


async def test_the_access_line_has_the_requests_result(caplog: pytest.LogCaptureFixture) -> None:
    """Model, token counts, time to first token and finish reason, but no text."""
    caplog.set_level(logging.INFO, "mesh.rpc")
    async with orchestrator(FakeInference()) as running:
        await generate(running, request("a secret"))
    [line] = [r for r in caplog.records if getattr(r, "ttft_seconds", None) is not None]
    fields = vars(line)
    assert fields["model"] == "fake"
    assert fields["finish_reason"] == "stop"
    assert fields["completion_tokens"] == len(running.engine.ids)
    assert fields["prompt_tokens"] >= 1
    assert fields["ttft_seconds"] > 0
    assert "secret" not in str(fields)


async def test_a_seed_of_64_bits_can_be_exported(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """OTLP's integers are signed; the attribute is the signed seed that gives the same tokens."""
    async with orchestrator(FakeInference()) as running:
        await generate(running, request(sampling=SamplingParams(seed=2**64 - 1)))
    finished = spans.get_finished_spans()
    name = "gen_ai.request.seed"
    assert [s.attributes[name] for s in finished if name in (s.attributes or {})] == [-1]
    encode_spans(finished)
    assert "Failed to encode" not in caplog.text


async def test_a_search_has_a_retrieval_span(spans: InMemorySpanExporter) -> None:
    """The span has the outcome, and the metrics are labelled with the RPC's method."""
    change = Change()
    async with orchestrator(FakeInference()) as running:
        await call_unary(running.stub.Summarize, orchestrator_pb2.SummarizeRequest(query="fox"))
    [span] = [span for span in spans.get_finished_spans() if span.name == "retrieval"]
    assert dict(span.attributes or {}) == {
        "weir.outcome": "ok",
        "gen_ai.operation.name": "retrieval",
        "weir.retrieval.outcome": "empty",
        "weir.retrieval.num_results": 0,
    }
    assert change.of("orchestrator_retrieval_seconds_count", outcome="empty") == 1
    assert change.of("orchestrator_requests_total", method="Summarize", outcome="ok") == 1
