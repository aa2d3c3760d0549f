"""Traces: ids always, recording only if an exporter is configured."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mesh.observability import telemetry, tracing
from mesh.observability.recording import exporters
from mesh.observability.recording.current import CurrentSpan, current_span


def test_without_an_endpoint_spans_have_ids_and_record_nothing() -> None:
    """A request has a trace id in its logs."""
    provider = telemetry.start("bakery")
    span = provider.get_tracer("t").start_span("s")
    assert span.get_span_context().is_valid
    assert not span.is_recording()
    provider.shutdown()


@pytest.mark.parametrize("variable", exporters.ENDPOINT_VARIABLES)
def test_with_an_endpoint_spans_are_exported(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Shutdown exports buffered spans, with the service's name."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda **_: exporter)
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    provider = telemetry.start("bakery")
    provider.get_tracer("t").start_span("s").end()
    provider.force_flush()
    [span] = exporter.get_finished_spans()
    provider.shutdown()
    assert span.name == "s"
    assert span.resource.attributes["service.name"] == "bakery"
    assert span.resource.attributes["service.namespace"] == "weir"
    assert span.resource.attributes["service.version"] == telemetry.weir_version()


def test_the_standard_variables_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME overrides the name in the code."""
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", InMemorySpanExporter)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    provider = telemetry.start("bakery")
    assert provider.resource.attributes["service.name"] == "other"
    provider.shutdown()


def test_the_default_sampler_limits_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten at once by default; all if the standard variable says so."""
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", InMemorySpanExporter)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")

    def recorded() -> int:
        provider = telemetry.start("bakery")
        tracer = provider.get_tracer("t")
        spans = [tracer.start_span("s", context=Context()) for _ in range(30)]
        provider.shutdown()
        return sum(span.get_span_context().trace_flags.sampled for span in spans)

    assert 10 <= recorded() <= 12
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    assert recorded() == 30


@pytest.mark.parametrize(
    ("sampler", "flags", "state", "makes_none"),
    [
        ("", "00", None, False),
        ("", "00", "weir=held", False),
        ("", "00", "weir=unrecorded", True),
        ("", "01", None, False),
        ("parentbased_always_on", "00", None, True),
        ("always_on", "00", None, False),
        ("traceidratio", "00", None, False),
    ],
)
def test_an_unsampled_caller_is_followed(
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    flags: str,
    state: str | None,
    makes_none: bool,
) -> None:
    """Unless the sampler ignores the caller's decision; the default one holds the spans."""
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", InMemorySpanExporter)
    monkeypatch.setattr(telemetry, "follows_callers", False)
    monkeypatch.setattr(telemetry, "silent", True)
    monkeypatch.setattr(telemetry, "holds", False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    telemetry.start("bakery").shutdown()
    carrier = {"traceparent": f"00-{10:032x}-{11:016x}-{flags}"}
    if state is not None:
        carrier["tracestate"] = state
    unrecorded = telemetry.span_if_unrecorded(carrier)
    assert (unrecorded is not None) is makes_none
    if unrecorded is not None:
        with unrecorded:
            assert telemetry.trace_id() == f"{10:032x}"
    for nothing in ({}, {"traceparent": "no trace"}):
        assert telemetry.span_if_unrecorded(nothing) is None


@pytest.mark.parametrize("w3c_only", [True, False])
@pytest.mark.parametrize("value", ["weir=\u00e9", "other=\x7f", "other=\t1"])
def test_what_metadata_cannot_hold_is_not_propagated(
    monkeypatch: pytest.MonkeyPatch, value: str, w3c_only: bool
) -> None:
    """gRPC would fail the calls of the request; the rest of its trace goes on."""
    monkeypatch.setattr(telemetry, "silent", True)
    monkeypatch.setattr(telemetry, "_w3c_only", w3c_only)
    traceparent = f"00-{10:032x}-{11:016x}-01"
    passed_on: list[tuple[str, str]] = []
    given = {"traceparent": traceparent, "tracestate": value, "baggage": value}
    with tracing.server_span("bakery", "Bake", given):
        tracing.ClientSpan("oven/Heat", passed_on)
    assert passed_on == [("traceparent", traceparent)]


@pytest.mark.parametrize("w3c_only", [True, False])
@pytest.mark.parametrize("called", ["with a trace", "without a trace"])
def test_unrecorded_traces_are_propagated(
    monkeypatch: pytest.MonkeyPatch, called: str, w3c_only: bool
) -> None:
    """The caller's headers unchanged, or those of a new trace; the previous span is restored."""
    monkeypatch.setattr(telemetry, "silent", True)
    monkeypatch.setattr(telemetry, "_w3c_only", w3c_only)
    given = {}
    if called == "with a trace":
        given = {
            "traceparent": f"00-{10:032x}-{11:016x}-01",
            "tracestate": "other=1",
            "baggage": "shop=3",
        }
    passed_on: list[tuple[str, str]] = []
    before = current_span()
    with tracing.server_span("bakery", "Bake", {**given, "x-request-id": "r"}) as span:
        with tracing.stage("kneading") as same, tracing.detached_stage("baking") as as_well:
            assert same is as_well is span is current_span()
        tracing.ClientSpan("oven/Heat", passed_on)
        trace_id = telemetry.trace_id()
    assert current_span() is before
    assert not span.is_recording()
    if given:
        assert dict(passed_on) == given
        assert trace_id == f"{10:032x}"
    else:
        assert [name for name, _ in passed_on] == ["traceparent"]
        assert passed_on[0][1].startswith(f"00-{trace_id}-")
        assert passed_on[0][1].endswith("-00")


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-ff",
        f"00-{TRACE}-{SPAN}-01-more",
        f"01-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01 ",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        "",
    ],
)
def test_traceparent_is_parsed_as_the_library_parses_it(
    traceparent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W3C Trace Context: the common form is parsed by a regular expression."""
    monkeypatch.setattr(telemetry, "silent", True)
    carrier = {"traceparent": traceparent}
    expected = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier))
    with telemetry.silent_span(carrier) as span:
        found, context = span.get_span_context(), expected.get_span_context()
        if context.is_valid:
            assert found == context
            assert found.is_remote
        else:
            assert found.is_valid
            assert found.trace_id != int(TRACE, 16)


def test_an_invalid_rate_is_a_startup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the variable, before anything listens."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "often")
    with pytest.raises(ValueError, match="OTEL_TRACES_SAMPLER_ARG"):
        telemetry.start("bakery")


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_an_exporter_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """The standard switches override an endpoint."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert telemetry.exporter_configured()
    monkeypatch.setenv(variable, value)
    assert not telemetry.exporter_configured()


def test_the_trace_id_is_that_of_the_current_span() -> None:
    """32 hexadecimal digits inside a span, empty outside."""
    span = trace.get_tracer("t").start_span("s")
    with CurrentSpan(span):
        assert telemetry.trace_id() == f"{span.get_span_context().trace_id:032x}"
    assert telemetry.trace_id() == ""
