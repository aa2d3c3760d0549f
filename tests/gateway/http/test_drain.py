"""Graceful shutdown: the drain in process, and signals to a gateway process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.http.server import running, serve
from gateway.settings import GatewaySettings
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.helpers import Served, eventually

ROOT = Path(__file__).parents[3]
SEARCH = {"query": "AI", "streaming": "true"}


async def test_drain_refuses_new_requests_and_finishes_running_ones(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """While draining: /readyz and new requests are 503, a running stream completes."""
    orchestrator.script = Script(deltas="abcdef", seconds_before_delta=0.1)
    async with start_gateway(drain_seconds=5) as server, client_of(server) as client:
        streaming = asyncio.create_task(client.get("/api/v1/search", params=SEARCH))
        await eventually(lambda: orchestrator.num_sent > 0, "the stream runs")
        draining = asyncio.create_task(server.drain())
        await eventually(lambda: server.dependencies.drain.draining, "draining")
        ready = await client.get("/readyz")
        refused = await client.get("/api/v1/search", params=SEARCH)
        alive = await client.get("/livez")
        stream = await streaming
        assert await draining == 0
    assert (ready.status_code, ready.text) == (503, "not ready: draining\n")
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["message"] == "this server is stopping; try again"
    assert alive.status_code == 200
    assert stream.text.count("event: token") == 6
    assert "event: complete" in stream.text


async def test_a_drain_closes_idle_connections_at_once(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """Their clients reach another gateway with the next request; running streams go on."""
    gate = asyncio.Semaphore(0)
    orchestrator.script = Script(deltas="ab", gate=gate)
    async with start_gateway(drain_seconds=20) as server, client_of(server) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"ok\n")
        streaming = asyncio.create_task(client.get("/api/v1/search", params=SEARCH))
        await eventually(lambda: orchestrator.num_running == 1, "the stream runs")
        draining = asyncio.create_task(server.drain())
        async with asyncio.timeout(5):
            assert await reader.read() == b"", "the idle connection is closed"
        assert not streaming.done()
        gate.release()
        gate.release()
        assert "event: complete" in (await streaming).text
        assert await draining == 0
        writer.close()


async def test_requests_longer_than_the_drain_end_with_an_error(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """Streams end with an error event in their format, other requests with a 503."""
    orchestrator.script = Script(seconds_before_delta=0.05, endless=True)
    body = {"prompt": "Hi", "stream": True}
    async with start_gateway(drain_seconds=0.2) as server, client_of(server) as client:
        requests = [
            asyncio.create_task(client.get("/api/v1/search", params=SEARCH)),
            asyncio.create_task(client.post("/v1/completions", json=body)),
            asyncio.create_task(client.get("/api/v1/search", params={"query": "AI"})),
        ]
        await eventually(lambda: orchestrator.num_running == 3, "the requests run")
        assert await server.drain() == 3
        search, completion, whole = await asyncio.gather(*requests)
        await eventually(lambda: orchestrator.num_running == 0, "nothing runs upstream")
    assert search.text.endswith(
        'event: error\ndata: {"type":"error","error":{"message":"the server stopped",'
        '"type":"server_error","code":"unavailable"}}\nid: error\n\n'
    )
    assert '{"error":{"message":"the server stopped"' in completion.text
    assert "[DONE]" not in completion.text
    assert whole.status_code == 503


async def test_a_client_that_does_not_read_does_not_delay_shutdown(
    upstream: Served, orchestrator: FakeOrchestrator
) -> None:
    """Its request and its connection end soon after the drain."""
    orchestrator.script = Script(deltas=["x" * 10_000], endless=True)
    settings = GatewaySettings.model_validate(
        {"listen": "127.0.0.1:0", "orchestrator_host": upstream.address, "drain_seconds": 0}
    )
    async with asyncio.timeout(10):
        async with running(settings) as (server, serving):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"GET /api/v1/search?query=AI&streaming=true HTTP/1.1\r\nhost: localhost\r\n\r\n"
            )
            await eventually(lambda: orchestrator.num_sent > 20, "the client has not read events")
        assert serving.done()
    assert server.dependencies.drain.num_active == 0
    writer.transport.abort()


async def test_an_address_in_use_is_an_os_error(upstream: Served) -> None:
    """`serve` raises OSError instead of exiting inside uvicorn."""
    async with running(GatewaySettings.model_validate({"listen": "127.0.0.1:0"})) as (server, _):
        taken = GatewaySettings.model_validate({"listen": f"127.0.0.1:{server.port}"})
        with pytest.raises(OSError, match="in use"):
            await serve(taken, asyncio.Event())


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a gateway as a process; yield it and its URL."""
    command = ["-m", "gateway", "--listen", "127.0.0.1:0", "--log-format", "json", *arguments]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        line = {"message": ""}
        while line["message"] != "listening":
            line = json.loads(await process.stderr.readline())
        yield process, f"http://{line['address']}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_stops_the_process(
    upstream: Served, orchestrator: FakeOrchestrator, number: signal.Signals
) -> None:
    """One SIGTERM or SIGINT stops it with a stream running: exit code 0, no traceback."""
    orchestrator.script = Script(seconds_before_delta=0.05, endless=True)
    arguments = ("--drain-seconds", "0.3", "--orchestrator-host", upstream.address)
    async with asyncio.timeout(30), process(*arguments) as (gateway, url):
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
            streaming = asyncio.create_task(client.get("/api/v1/search", params=SEARCH))
            await eventually(lambda: orchestrator.num_sent > 0, "the stream runs")
            gateway.send_signal(number)
            stream = await streaming
        assert gateway.stderr is not None
        log = (await gateway.stderr.read()).decode()
        assert await gateway.wait() == 0
    assert stream.text.rpartition("event: ")[2].startswith("error")
    assert "Traceback" not in log
    phrases = [json.loads(line)["message"] for line in log.splitlines()]
    assert phrases == [
        "peer ready",
        "signal received, draining",
        "request finished",
        "drained",
        "stopped",
    ]


async def test_every_line_of_the_log_is_json(
    upstream: Served, orchestrator: FakeOrchestrator
) -> None:
    """Also when connections are lost, which gRPC's core would log as text."""
    arguments = ("--drain-seconds", "0", "--hold-seconds", "0.1")
    async with (
        asyncio.timeout(30),
        process(*arguments, "--orchestrator-host", upstream.address) as (gateway, url),
    ):
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
            while (await client.get("/v1/models")).status_code != 200:
                await asyncio.sleep(0.05)
            await upstream.server.drain(timeout=0)
            assert (await client.get("/v1/models")).status_code == 503
        gateway.send_signal(signal.SIGTERM)
        assert gateway.stderr is not None
        for line in (await gateway.stderr.read()).splitlines():
            json.loads(line)


async def test_metrics_listen_keeps_metrics_at_the_main_address(upstream: Served) -> None:
    """With --metrics-listen the main address still serves /metrics and /livez."""
    arguments = ("--metrics-listen", "127.0.0.1:0", "--orchestrator-host", upstream.address)
    async with (
        asyncio.timeout(30),
        process(*arguments) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client,
    ):
        assert "gateway_http_requests_total" in (await client.get("/metrics")).text
        assert (await client.get("/livez")).status_code == 200
