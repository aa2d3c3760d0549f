"""Gateways under mutual TLS: they work together, and whatever is no gateway is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.http.server import GatewayServer, running
from gateway.keys.key_file import Limits
from gateway.peers import service
from gateway.settings import GatewaySettings
from gateway.upstream.client import SERVICE
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_channel, open_stream
from mesh.rpc.server import Server, Servicer
from mesh.rpc.tls import NO_TLS, TlsFiles
from mesh.v1 import gateway_pb2, gateway_pb2_grpc, orchestrator_pb2_grpc
from tests.e2e.support.stack import free_ports
from tests.gateway.conftest import StartGateway
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.peers.test_gateways import (
    DELTAS,
    SEARCH,
    TEXT,
    num_connected,
    pair_of,
    take,
    text_of,
    until,
)
from tests.gateway.sse import Event, events
from tests.helpers import eventually
from tests.mesh.rpc.test_tls import Authority

pytestmark = pytest.mark.timeout(60)

HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def files(authority: Authority) -> TlsFiles:
    """The gateways' certificate; the fake orchestrator has it too."""
    return authority.files(HOST)


@pytest.fixture
def start_secure(files: TlsFiles, orchestrator: FakeOrchestrator) -> StartGateway:
    """Starts a gateway, and an orchestrator for it, that use mutual TLS."""

    @asynccontextmanager
    async def start(**settings: object) -> AsyncIterator[GatewayServer]:
        register = orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server
        upstream = Server([Servicer(SERVICE, register, orchestrator)], files)
        port = await upstream.start(f"{HOST}:0")
        await upstream.set_ready(True)
        tls = {
            "tls_certificate": files.certificate,
            "tls_private_key": files.private_key,
            "tls_ca": files.ca,
        }
        made = GatewaySettings.model_validate(
            {
                "listen": f"{HOST}:0",
                "orchestrator_host": f"{HOST}:{port}",
                "drain_seconds": 0,
                **tls,
                **settings,
            }
        )
        try:
            async with running(made) as (server, _):
                yield server
        finally:
            await upstream.drain(timeout=0)

    return start


def other(authority: Authority, folder: Path, *names: str) -> TlsFiles:
    """A certificate of the same CA for other names, such as another service's."""
    theirs = Authority(folder)
    theirs.ca = authority.ca
    return theirs.files(*names)


async def error_of(address: str, files: TlsFiles, method: str) -> ErrorKind | None:
    """The kind of error of a call to a gateway; None: it was answered."""
    channel = open_channel(address, files)
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    try:
        if method == "StopStream":
            await call_unary(stub.StopStream, gateway_pb2.StopStreamRequest(stream="x"), 10)
            return None
        request: Any = gateway_pb2.WatchKeyUsageRequest()
        if method == "ResumeStream":
            request = gateway_pb2.ResumeStreamRequest(stream="x")
        async with open_stream(getattr(stub, method), request, timeout=10) as responses:
            await anext(responses)
    except MeshError as error:
        return error.kind
    finally:
        await channel.close()
    return None


async def test_gateways_share_limits_and_streams_under_mutual_tls(
    start_secure: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """A key at its limit at one is refused at the other, and a stream is resumed there."""
    limits, body = Limits(max_concurrent=2), {**TEXT, "stream": True}
    async with pair_of(start_secure, tmp_path, limits) as (_, clients):
        orchestrator.scripts = [Script(endless=True, seconds_before_delta=0.02) for _ in range(2)]
        async with (
            clients[0].stream("POST", "/v1/completions", json=body),
            clients[1].stream("POST", "/v1/completions", json=body),
        ):
            await until(clients[0], is_refused=True)
            await until(clients[1], is_refused=True)
        orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.01)
        await until(clients[0], is_refused=False)
        received: list[Event] = []
        async with clients[0].stream("GET", SEARCH) as response:
            assert response.status_code == 200
            received += await take(events(response), 4)
        last = {"last-event-id": received[-1].id or ""}
        async with clients[1].stream("GET", SEARCH, headers=last) as response:
            assert response.status_code == 200
            received += [event async for event in events(response)]
        assert text_of(received) == "".join(DELTAS)


async def test_only_gateways_may_call(
    start_secure: StartGateway, authority: Authority, files: TlsFiles, tmp_path: Path
) -> None:
    """No certificate, another CA's, and one of the CA for another service are refused."""
    [port] = free_ports(1)
    address = f"{HOST}:{port}"
    stranger = Authority(tmp_path / "stranger").files(HOST)._replace(ca=files.ca)
    engine = other(authority, tmp_path / "engine", "inference", "localhost")
    async with start_secure(peers_listen=address, peers_host=address):
        for method in ("WatchKeyUsage", "ResumeStream", "StopStream"):
            assert await error_of(address, files, method) is None
            assert await error_of(address, engine, method) is ErrorKind.UNAUTHENTICATED
        for untrusted in (NO_TLS, TlsFiles(ca=files.ca), stranger):
            assert await error_of(address, untrusted, "StopStream") is ErrorKind.UNAVAILABLE


class Impostor(gateway_pb2_grpc.GatewayServiceServicer):
    """Notices that it is called."""

    num_calls = 0

    async def WatchKeyUsage(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.num_calls += 1
        yield gateway_pb2.WatchKeyUsageResponse(instance="A" * 12)


async def test_another_service_at_a_gateways_address_is_not_followed(
    start_secure: StartGateway, authority: Authority, tmp_path: Path
) -> None:
    """Its certificate is not for the gateways' name."""
    here, there, false = (f"{HOST}:{port}" for port in free_ports(3))
    impostor = Impostor()
    register = gateway_pb2_grpc.add_GatewayServiceServicer_to_server
    engine = other(authority, tmp_path / "engine", "inference")
    async with AsyncExitStack() as stack:
        server = Server([Servicer(service.SERVICE, register, impostor)], engine)
        await server.start(false)
        stack.push_async_callback(server.drain, 0)
        host = ",".join((false, here, there))
        starting = start_secure(peers_listen=here, peers_host=host, dns_refresh_seconds=0.2)
        first = await stack.enter_async_context(starting)
        await stack.enter_async_context(start_secure(peers_listen=there, peers_host=host))
        await eventually(lambda: num_connected(first) == 1, "it has found the other one", 20)
        assert impostor.num_calls == 0


@pytest.mark.parametrize(
    ("given", "name", "covered"),
    [
        ("a.b.svc", "a.b.svc", True),
        ("*.b.svc", "a.b.svc", True),
        ("*.svc", "a.b.svc", False),
        ("*.b.svc", "b.svc", False),
        ("a.b", "a.b.svc", False),
        ("127.0.0.1", "127.0.0.1", True),
    ],
)
def test_names_of_certificates(given: str, name: str, covered: bool) -> None:
    """A wildcard stands for one label, as in TLS."""
    assert service._covers(given, name) is covered
