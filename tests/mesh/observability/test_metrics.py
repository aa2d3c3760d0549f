"""/metrics and /livez."""

from __future__ import annotations

import asyncio
import http.client
import platform
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mesh.errors import ErrorKind, MeshError
from mesh.observability import metrics, telemetry
from mesh.observability.metrics import metrics_server
from mesh.observability.recording.current import CurrentSpan
from tests.samples import Change


def get(port: int, path: str, host: str = "127.0.0.1", accept: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    with metrics_server("127.0.0.1:0", asyncio.get_running_loop()) as port:
        yield port


async def test_metrics_are_prometheus_text(port: int) -> None:
    """The response has every metric of the process."""
    status, text = await asyncio.to_thread(get, port, "/metrics")
    assert status == 200
    assert "# TYPE mesh_rpc_server_duration_seconds histogram" in text
    assert "# TYPE mesh_errors_total counter" in text


async def test_the_build_info_has_versions(port: int) -> None:
    """Labels are the service, its version and Python's version."""
    metrics.set_build_info("bakery")
    _, text = await asyncio.to_thread(get, port, "/metrics")
    python_version = platform.python_version()
    assert (
        f'mesh_build_info{{component="bakery",python_version="{python_version}",'
        f'version="{telemetry.weir_version()}"}} 1.0'
    ) in text


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (None, "OK"),
        (asyncio.CancelledError(), "CANCELLED"),
        (GeneratorExit(), "CANCELLED"),
        (MeshError(ErrorKind.OVERLOADED, "full"), "RESOURCE_EXHAUSTED"),
        (ValueError(), "UNKNOWN"),
    ],
)
def test_a_client_call_is_observed(raised: BaseException | None, code: str) -> None:
    """Once, however it ends."""
    change = Change()
    with suppress(type(raised) if raised else ()), metrics.ClientCall("a.B/Bake"):
        if raised:
            raise raised
    name = "mesh_rpc_client_duration_seconds_count"
    assert change.of(name) == 1
    assert change.of(name, rpc_service="a.B", rpc_method="Bake", code=code) == 1


def test_health_checks_are_not_observed() -> None:
    """They are frequent and carry no information."""
    change = Change()
    with metrics.ClientCall("grpc.health.v1.Health/Check"):
        pass
    assert change.of("mesh_rpc_client_duration_seconds_count") == 0


async def test_other_paths_are_not_found(port: int) -> None:
    """A wrong path is 404."""
    assert await asyncio.to_thread(get, port, "/") == (404, "not found\n")


async def test_livez_is_200_while_the_loop_turns(port: int) -> None:
    """An idle process is live."""
    assert await asyncio.to_thread(get, port, "/livez") == (200, "ok\n")


async def test_livez_is_503_while_the_loop_is_stuck(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics thread reports a loop that does not respond in time."""
    monkeypatch.setattr(metrics, "LIVENESS_TIMEOUT_SECONDS", 0.05)
    answers: list[tuple[int, str]] = []
    probe = threading.Thread(target=lambda: answers.append(get(port, "/livez")))
    probe.start()
    probe.join()  # blocks the loop's thread
    assert answers == [(503, "service unavailable\n")]


def test_livez_is_503_after_the_loop_has_closed() -> None:
    """A process whose loop has ended is not live."""
    loop = asyncio.new_event_loop()
    loop.close()
    with metrics_server("127.0.0.1:0", loop) as port:
        assert get(port, "/livez")[0] == 503


async def test_livez_is_503_of_a_service_that_has_failed() -> None:
    """Although the loop responds: it may be unable to end the process."""
    failed = threading.Event()
    with metrics_server("127.0.0.1:0", asyncio.get_running_loop(), failed) as port:
        assert (await asyncio.to_thread(get, port, "/livez"))[0] == 200
        failed.set()
        assert (await asyncio.to_thread(get, port, "/livez"))[0] == 503


async def test_a_stuck_probe_does_not_block_others(port: int) -> None:
    """While a client is connected and sends nothing, other requests are answered."""
    with socket.create_connection(("127.0.0.1", port)):
        started = time.monotonic()
        status, _ = await asyncio.to_thread(get, port, "/livez")
        assert status == 200
        assert time.monotonic() - started < 5


async def test_ipv6_addresses_are_served() -> None:
    """[::1] in brackets."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        with metrics_server("[::1]:0", asyncio.get_running_loop()) as port:
            assert await asyncio.to_thread(get, port, "/livez", "::1") == (200, "ok\n")
    except OSError:
        pytest.skip("no IPv6")


async def test_histograms_carry_trace_ids(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket in OpenMetrics has a trace id as exemplar if the trace is recorded."""
    monkeypatch.setattr(telemetry, "silent", False)
    tracer = TracerProvider().get_tracer("t")
    histogram = metrics.RPC_DURATION.labels("exemplar", "M", "OK")
    assert metrics.exemplar() is None
    span = tracer.start_span("s")
    with CurrentSpan(span):
        histogram.observe(0.2, metrics.exemplar())
    with trace.get_tracer("t").start_as_current_span("unrecorded"):
        assert metrics.exemplar() is None
    monkeypatch.setattr(telemetry, "silent", True)
    with CurrentSpan(tracer.start_span("nothing is exported")):
        assert metrics.exemplar() is None
    _, text = await asyncio.to_thread(
        get, port, "/metrics", "127.0.0.1", "application/openmetrics-text; version=1.0.0"
    )
    assert f'# {{trace_id="{span.get_span_context().trace_id:032x}"}} 0.2' in text
