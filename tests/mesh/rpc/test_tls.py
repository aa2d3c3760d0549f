"""TLS between services: client and server verification, and certificate renewal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import ErrorKind, MeshError
from mesh.rpc import secure_channel
from mesh.rpc.channel import call_unary, open_channel
from mesh.rpc.server import Server
from mesh.rpc.tls import NO_TLS, TlsError, TlsFiles, channel_credentials, server_credentials

pytestmark = pytest.mark.timeout(60)

CHECK = health_pb2.HealthCheckRequest()


class Authority:
    """A CA that writes PEM files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca = trustme.CA(key_type=trustme.KeyType.ECDSA)

    def files(self, *names: str, client_auth: bool = True) -> TlsFiles:
        """A new certificate for these names; replaces the previous files."""
        issued = self.ca.issue_cert(*names, key_type=trustme.KeyType.ECDSA)
        files = TlsFiles(
            str(self.folder / "cert.pem"),
            str(self.folder / "key.pem"),
            str(self.folder / "ca.pem"),
            client_auth,
        )
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        Path(files.certificate).write_bytes(chain)
        Path(files.private_key).write_bytes(issued.private_key_pem.bytes())
        Path(files.ca).write_bytes(self.ca.cert_pem.bytes())
        return files


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


@asynccontextmanager
async def serving(files: TlsFiles) -> AsyncIterator[str]:
    """A server of health checks only; yields its address."""
    server = Server([], files)
    port = await server.start("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.drain(timeout=0)


async def ask(address: str, files: TlsFiles, name: str | None = None) -> None:
    """Make one call over a new channel; raises MeshError."""
    channel = open_channel(address, files, name)
    try:
        await call_unary(health_pb2_grpc.HealthStub(channel).Check, CHECK, timeout=10)
    finally:
        await channel.close()


async def refused(address: str, files: TlsFiles, name: str | None = None) -> bool:
    """Whether the call fails."""
    try:
        await ask(address, files, name)
    except MeshError as error:
        return error.kind is ErrorKind.UNAVAILABLE
    return False


async def test_clients_need_a_valid_certificate(authority: Authority, stranger: Authority) -> None:
    """Plain text, no certificate and another CA's certificate are refused."""
    files = authority.files("127.0.0.1")
    async with serving(files) as address:
        await ask(address, files)
        assert await refused(address, NO_TLS)
        assert await refused(address, TlsFiles(ca=files.ca))
        theirs = stranger.files("127.0.0.1")
        assert await refused(address, theirs._replace(ca=files.ca))


async def test_servers_need_a_certificate_of_the_ca_for_the_expected_name(
    authority: Authority, stranger: Authority
) -> None:
    """A replica is resolved to an address; its certificate is for the service's name."""
    async with serving(authority.files("inference")) as address:
        files = authority.files("inference")
        await ask(address, files, "inference")
        assert await refused(address, files, "tokenizer")
        assert await refused(address, files)  # the certificate is not for the address
        assert await refused(address, stranger.files("x"), "inference")


async def test_without_client_auth_a_client_needs_the_ca_only(authority: Authority) -> None:
    """TLS without client certificates."""
    files = authority.files("127.0.0.1", client_auth=False)
    async with serving(files) as address:
        await ask(address, TlsFiles(ca=files.ca))
        assert await refused(address, NO_TLS)


async def test_renewed_certificates_are_used_at_both_ends(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new CA: open channels keep working, and clients with the old CA are refused."""
    monkeypatch.setattr(secure_channel, "CHECK_SECONDS", 0.0)
    old = Authority(tmp_path / "old")
    old.ca = authority.ca
    old_files = old.files("127.0.0.1")
    files = authority.files("127.0.0.1")
    async with serving(files) as address:
        channel = open_channel(address, files)
        check = health_pb2_grpc.HealthStub(channel).Check
        watch = health_pb2_grpc.HealthStub(channel).Watch(CHECK)
        await call_unary(check, CHECK, timeout=10)
        assert (await watch.read()).status
        first = channel._plain.current()  # type: ignore[attr-defined]
        authority.ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.files("127.0.0.1")
        await call_unary(check, CHECK, timeout=10)
        assert channel._plain.current() is not first  # type: ignore[attr-defined]
        assert await refused(address, old_files)
        assert not watch.done()  # it continues over its connection
        watch.cancel()
        await channel.close()


async def test_an_incomplete_renewal_changes_nothing(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While certificate and key do not match, the old pair stays in use."""
    monkeypatch.setattr(secure_channel, "CHECK_SECONDS", 0.0)
    files = authority.files("127.0.0.1")
    async with serving(files) as address:
        channel = open_channel(address, files)
        check = health_pb2_grpc.HealthStub(channel).Check
        key = Path(files.private_key).read_bytes()
        authority.files("127.0.0.1")
        new_key = Path(files.private_key).read_bytes()
        Path(files.private_key).write_bytes(key)
        await call_unary(check, CHECK, timeout=10)
        Path(files.private_key).write_bytes(new_key)
        await call_unary(check, CHECK, timeout=10)
        await ask(address, files)
        await channel.close()
    assert "certificate not renewed" in caplog.text


async def test_closing_a_channel_closes_older_channels(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels with older certificates are closed with it, including their calls."""
    monkeypatch.setattr(secure_channel, "CHECK_SECONDS", 0.0)
    files = authority.files("127.0.0.1")
    before = asyncio.all_tasks()
    async with serving(files) as address:
        channel = open_channel(address, files)
        watch = health_pb2_grpc.HealthStub(channel).Watch(CHECK)
        await watch.read()
        authority.files("127.0.0.1")
        await call_unary(health_pb2_grpc.HealthStub(channel).Check, CHECK, timeout=10)
        await channel.close()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await watch.read()
    assert not [t for t in asyncio.all_tasks() - before if t.get_name() == "close old channel"]


@pytest.mark.parametrize("broken", ["certificate", "private_key", "ca"])
def test_invalid_files_are_named(authority: Authority, broken: str) -> None:
    """At startup, not at the first handshake; the contents are not shown."""
    files = authority.files("127.0.0.1")
    Path(getattr(files, broken)).write_text("-----BEGIN hunter2-----")
    for make in (channel_credentials, server_credentials):
        with pytest.raises(TlsError, match=r"cannot use .*\.pem") as caught:
            make(files)
        assert "hunter2" not in str(caught.value)
    Path(getattr(files, broken)).unlink()
    with pytest.raises(TlsError, match="No such file"):
        channel_credentials(files)


async def test_the_health_address_needs_no_tls(authority: Authority) -> None:
    """A second address serves the same health, also during the drain, and nothing else."""
    server = Server([], authority.files("localhost"))
    await server.start("127.0.0.1:0", "127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{server.health_port}")
    health = health_pb2_grpc.HealthStub(channel)
    try:
        response = await call_unary(health.Check, CHECK, timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
        await server.health.enter_graceful_shutdown()
        response = await call_unary(health.Check, CHECK, timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
        reflect = channel.unary_unary("/grpc.reflection.v1alpha.ServerReflection/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await reflect(b"", timeout=10)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await channel.close()
        await server.drain(timeout=0)


async def test_a_used_health_address_is_named(authority: Authority) -> None:
    """The error has the address, as for the main address."""
    async with serving(NO_TLS) as taken:
        server = Server([], authority.files("localhost"))
        with pytest.raises(OSError, match=f"cannot listen on {taken}"):
            await server.start("127.0.0.1:0", taken)
        await server.drain(timeout=0)
