"""HTTPS with client certificates and certificate renewal; mutual TLS to the orchestrator."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from gateway.connection import uvicorn_server
from gateway.http import server as gateway_server
from gateway.http.server import running
from gateway.settings import GatewaySettings
from gateway.upstream.client import SERVICE
from mesh.rpc.server import Server, Servicer
from mesh.rpc.tls import TlsError
from mesh.v1 import orchestrator_pb2_grpc
from tests.gateway.conftest import StartGateway
from tests.gateway.connection.raw import connected, read_all
from tests.gateway.fakes import FakeOrchestrator
from tests.mesh.rpc.test_tls import Authority

pytestmark = pytest.mark.timeout(60)


def settings_of(authority: Authority, *names: str) -> dict[str, object]:
    """Issue a certificate and return the gateway's settings for it."""
    files = authority.files(*names)
    return {
        "http_tls_certificate": files.certificate,
        "http_tls_private_key": files.private_key,
        "http_tls_client_ca": files.ca,
    }


def client(port: int, trusts: trustme.CA, signed_by: trustme.CA | None) -> httpx.AsyncClient:
    """A client that trusts one CA and presents a certificate of another, or none."""
    context = ssl.create_default_context()
    trusts.configure_trust(context)
    if signed_by is not None:
        signed_by.issue_cert("client@example.org").configure_cert(context)
    url = f"https://localhost:{port}"
    return httpx.AsyncClient(base_url=url, verify=context, trust_env=False, timeout=10)


async def status(port: int, trusts: trustme.CA, signed_by: trustme.CA | None) -> int:
    """Status of one request on a new connection; 0 if the connection fails."""
    try:
        async with client(port, trusts, signed_by) as http:
            return (await http.get("/livez")).status_code
    except httpx.TransportError:
        return 0


async def test_client_certificates_and_renewal(
    start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only clients with a certificate of the CA are accepted; a renewed certificate is loaded."""
    monkeypatch.setattr(gateway_server, "CHECK_SECONDS", 0.01)
    authority = Authority(tmp_path / "ca")
    old = authority.ca
    async with start_gateway(**settings_of(authority, "localhost")) as server:
        assert await status(server.port, old, old) == 200
        assert await status(server.port, old, None) == 0
        assert await status(server.port, old, trustme.CA()) == 0
        authority.ca = new = trustme.CA()
        settings_of(authority, "localhost")
        for _ in range(500):
            if await status(server.port, new, new):
                break
        assert await status(server.port, new, new) == 200
        assert await status(server.port, old, new) == 0


async def test_mutual_tls_to_the_orchestrator(tmp_path: Path) -> None:
    """With a client certificate the gateway is ready, without one it is not."""
    authority = Authority(tmp_path / "ca")
    files = authority.files("127.0.0.1")
    register = orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server
    upstream = Server([Servicer(SERVICE, register, FakeOrchestrator())], files)
    port = await upstream.start("127.0.0.1:0")
    await upstream.set_ready(True)
    common = {"listen": "127.0.0.1:0", "orchestrator_host": f"127.0.0.1:{port}"}
    identity = {"tls_certificate": files.certificate, "tls_private_key": files.private_key}
    try:
        for given, ready in (({**identity, "tls_ca": files.ca}, 200), ({"tls_ca": files.ca}, 503)):
            settings = GatewaySettings.model_validate(
                {**common, **given, "drain_seconds": 0, "hold_seconds": 5 if ready == 200 else 0.3}
            )
            async with running(settings) as (server, _):
                url = f"http://127.0.0.1:{server.port}"
                async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as http:
                    # Waits for the connection.
                    assert (await http.get("/v1/models")).status_code == ready
                    assert (await http.get("/readyz")).status_code == ready
    finally:
        await upstream.drain(0)


async def test_a_bad_certificate_fails_at_startup(tmp_path: Path) -> None:
    """Starting the server raises TlsError."""
    bad = tmp_path / "cert.pem"
    bad.write_text("x")
    settings = GatewaySettings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "http_tls_certificate": str(bad),
            "http_tls_private_key": str(bad),
        }
    )
    with pytest.raises(TlsError):
        async with running(settings):
            pass


async def test_a_silent_handshake_is_ended(
    start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that connects and sends nothing, or a part of its first message, is disconnected."""
    monkeypatch.setattr(uvicorn_server, "TLS_HANDSHAKE_SECONDS", 0.2)
    async with start_gateway(**settings_of(Authority(tmp_path), "localhost")) as server:
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
            async with connected(server) as (reader, writer):
                writer.write(sent)
                assert await read_all(reader) == b""
