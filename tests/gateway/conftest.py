"""Fixtures: a gateway on real uvicorn, connected to a fake orchestrator on real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

from gateway.http.server import GatewayServer, running
from gateway.observability import metrics
from gateway.settings import GatewaySettings
from gateway.upstream.client import SERVICE
from mesh.rpc.multiplex.channel import MultiplexChannel
from mesh.rpc.server import Servicer
from mesh.v1 import orchestrator_pb2_grpc
from tests.gateway.fakes import FakeOrchestrator
from tests.helpers import Served, eventually, serve

StartGateway = Callable[..., AbstractAsyncContextManager[GatewayServer]]


@pytest.fixture
def orchestrator() -> FakeOrchestrator:
    return FakeOrchestrator()


@pytest.fixture
async def upstream(orchestrator: FakeOrchestrator, no_tasks_left: None) -> AsyncIterator[Served]:
    """The gRPC server of the fake orchestrator."""
    register = orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, orchestrator)) as served:
        yield served


@pytest.fixture
def start_gateway(upstream: Served) -> StartGateway:
    """Starts a gateway with more settings; at its end, no request and no stream may be active."""

    @asynccontextmanager
    async def start(**settings: object) -> AsyncIterator[GatewayServer]:
        made = GatewaySettings.model_validate(
            {
                "listen": "127.0.0.1:0",
                "orchestrator_host": upstream.address,
                "drain_seconds": 0,
                **settings,
            }
        )
        async with running(made) as (server, _):
            yield server
        assert server.dependencies.drain.num_active == 0
        assert metrics.STREAMS_ACTIVE._value.get() == 0

    return start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> AsyncIterator[GatewayServer]:
    async with start_gateway() as server:
        yield server


@pytest.fixture
async def client(
    gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client; after the test, waits until none of its requests runs."""
    async with client_of(gateway) as client:
        yield client
    await eventually(lambda: orchestrator.num_running == 0, "no call runs upstream")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "no request runs")


def client_of(server: GatewayServer) -> httpx.AsyncClient:
    """Create an HTTP client of `server`."""
    url = f"http://127.0.0.1:{server.port}"
    return httpx.AsyncClient(base_url=url, timeout=10, trust_env=False)


async def open_multiplexed(server: GatewayServer) -> None:
    """Opens the gateway's multiplexed stream to the orchestrator; later calls use it."""
    balanced = server.dependencies.orchestrator._channel
    await eventually(lambda: balanced.is_ready, "the orchestrator is ready")
    [peer] = balanced.ready
    channel = peer.channel
    assert isinstance(channel, MultiplexChannel)
    await eventually(lambda: channel.stream() is not None, "the stream is open")


async def soon() -> None:
    """Give tasks that are ready to run 50 ms."""
    await asyncio.sleep(0.05)
