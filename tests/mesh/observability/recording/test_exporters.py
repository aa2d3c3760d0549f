"""The exporters of spans, by OpenTelemetry's standard variables."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from mesh.observability import telemetry
from mesh.observability.recording.exporters import exporter_names, span_exporters
from scripts.traceview.otlp import grpc_receiver
from scripts.traceview.store import Store
from scripts.traceview.web import web_server

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@contextmanager
def receiver(protocol: str, store: Store) -> Iterator[str]:
    """An OTLP receiver for the protocol; yields its endpoint."""
    with ExitStack() as stack:
        if protocol == "grpc":
            port = stack.enter_context(grpc_receiver("127.0.0.1:0", store.add))
        else:
            port = stack.enter_context(web_server("127.0.0.1:0", store))
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_arrive_over_the_selected_protocol(
    monkeypatch: pytest.MonkeyPatch, protocol: str, compression: str
) -> None:
    """Each receiver understands one protocol only."""
    store = Store(keep=3)
    with receiver(protocol, store) as endpoint:
        monkeypatch.setenv(ENDPOINT, endpoint)
        monkeypatch.setenv(PROTOCOL, protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
        provider = telemetry.start("bakery")
        provider.get_tracer("t").start_span("knead").end()
        telemetry.shut_down(provider, limit_s=30)
    [summary] = store.summaries()
    assert summary.name == "knead"


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({ENDPOINT: "http://tempo:4317"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://tempo:4317"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console"}, ["console"]),
        ({"OTEL_TRACES_EXPORTER": " OTLP , console"}, ["otlp", "console"]),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://tempo:4317"}, []),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "console"}, []),
    ],
)
def test_exporters_are_selected_by_variables(environment: dict[str, str], names: list[str]) -> None:
    """Without a variable none; with an endpoint alone OTLP."""
    assert list(exporter_names(environment)) == names


def test_the_console_exporter_is_created() -> None:
    [exporter] = span_exporters({"OTEL_TRACES_EXPORTER": "console"})
    assert isinstance(exporter, ConsoleSpanExporter)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must .* given zipkin"),
        (
            {ENDPOINT: "http://tempo", PROTOCOL: "http/json"},
            f"{PROTOCOL} must be grpc or http/protobuf, given http/json",
        ),
        (
            {
                ENDPOINT: "http://tempo",
                PROTOCOL: "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "udp",
            },
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL must .* given udp",
        ),
    ],
)
def test_an_invalid_value_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        span_exporters(environment)


def test_a_trace_leaves_within_seconds_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shutdown or a flush, well before the 5 s of the SDK's default."""
    store = Store(keep=3)
    with receiver("grpc", store) as endpoint:
        monkeypatch.setenv(ENDPOINT, endpoint)
        provider = telemetry.start("bakery")
        started = time.monotonic()
        provider.get_tracer("t").start_span("knead").end()
        while not store.summaries():
            assert time.monotonic() - started < 4.5
            time.sleep(0.02)
        telemetry.shut_down(provider)


def test_a_collector_that_does_not_answer_does_not_delay_the_exit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The spans are given up, with a warning."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        provider = telemetry.start("bakery")
        provider.get_tracer("t").start_span("knead").end()
        with caplog.at_level(logging.WARNING):
            telemetry.shut_down(provider, limit_s=0.1)
    assert "spans not exported, no answer from the collector" in caplog.messages
