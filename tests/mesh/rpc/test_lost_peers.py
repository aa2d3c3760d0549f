"""Peers that are frozen or cut off: nothing arrives any more, and no TCP reset either."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import grpc.aio
import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.rpc import transport
from mesh.rpc.channel import call_unary, open_channel, open_stream
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.chaos.proxy import Proxy
from tests.helpers import eventually, serve
from tests.mesh.rpc.test_server import SERVICE, FakeTokenizer

PROMISED_SECONDS = 15.0
"""Within this time the streams of a lost peer continue elsewhere."""

QUICK_SECONDS = 0.3
DEFAULT_SECONDS = 60.0
SILENT_STREAM = tokenizer_pb2.GetTokenizerRequest(known_sha256="slow")


class Connection(NamedTuple):
    """A stream through a proxy, after its first message."""

    channel: grpc.aio.Channel
    proxy: Proxy
    tokenizer: FakeTokenizer


async def connected(
    monkeypatch: pytest.MonkeyPatch, *, client_seconds: float, server_seconds: float
) -> AsyncIterator[Connection]:
    """Client and server with different keepalive times, and a proxy between them."""
    tokenizer = FakeTokenizer()
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    set_keepalive(monkeypatch, server_seconds)
    async with serve(Servicer(SERVICE, register, tokenizer)) as served, Proxy().running() as proxy:
        proxy.target = served.address
        set_keepalive(monkeypatch, client_seconds)
        channel = open_channel(proxy.address)
        yield Connection(channel, proxy, tokenizer)
        await channel.close()


def set_keepalive(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Sets interval and timeout of the servers and channels that are opened from now on."""
    monkeypatch.setattr(transport, "KEEPALIVE_SECONDS", seconds)
    monkeypatch.setattr(transport, "KEEPALIVE_TIMEOUT_SECONDS", seconds)


@pytest.fixture
async def impatient_client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    async for connection in connected(
        monkeypatch, client_seconds=QUICK_SECONDS, server_seconds=2 * QUICK_SECONDS
    ):
        yield connection


@pytest.fixture
async def impatient_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    async for connection in connected(
        monkeypatch, client_seconds=DEFAULT_SECONDS, server_seconds=QUICK_SECONDS
    ):
        yield connection


async def test_a_silent_server_is_lost_after_one_ping(impatient_client: Connection) -> None:
    """The stream ends with UNAVAILABLE after interval and timeout, not gRPC's minute."""
    channel, proxy, _ = impatient_client
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    async with open_stream(stub.GetTokenizer, SILENT_STREAM) as responses:
        await anext(responses)
        proxy.silent = True
        began = time.monotonic()
        with pytest.raises(MeshError) as caught:
            async with asyncio.timeout(10):
                await anext(responses)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert time.monotonic() - began < 2 * QUICK_SECONDS + 2


async def test_a_silent_client_is_lost_after_one_ping(impatient_server: Connection) -> None:
    """The server cancels the handler, which frees what the request holds."""
    channel, proxy, tokenizer = impatient_server
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    async with open_stream(stub.GetTokenizer, SILENT_STREAM) as responses:
        await anext(responses)
        assert not tokenizer.closed.is_set()
        proxy.silent = True
        await eventually(tokenizer.closed.is_set, "the handler is cancelled")


async def test_a_silent_stream_of_a_living_peer_goes_on(impatient_client: Connection) -> None:
    """Pings of several intervals do not end it, neither by a timeout nor as too many pings."""
    channel, _, _ = impatient_client
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    async with open_stream(stub.GetTokenizer, SILENT_STREAM) as responses:
        await anext(responses)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.5 * QUICK_SECONDS):
                await anext(responses)


@pytest.mark.parametrize(
    "options",
    [transport.channel_options(), transport.server_options(60, 60)],
    ids=["client", "server"],
)
def test_the_times_fit_the_promise(options: transport.Options) -> None:
    """A lost peer is found early enough that its streams continue within 15 s."""
    milliseconds = dict(options)
    found = int(milliseconds["grpc.keepalive_time_ms"])
    found += int(milliseconds["grpc.http2.ping_timeout_ms"])
    assert found <= 1000 * PROMISED_SECONDS * 0.8
    # TCP_USER_TIMEOUT ends a connection on which sent data is not acknowledged.
    assert milliseconds["grpc.keepalive_timeout_ms"] == milliseconds["grpc.http2.ping_timeout_ms"]


async def test_calls_between_services_use_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the environment names one, which does not answer."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, FakeTokenizer())) as served:
        channel = open_channel(served.address)
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        request = tokenizer_pb2.EncodeRequest(text="a")
        assert (await call_unary(stub.Encode, request, 5)).token_ids == [1, 2, 3]
        await channel.close()
