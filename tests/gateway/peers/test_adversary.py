"""What an attacker can do who reaches the gateways' port, or answers at an address of theirs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gateway.keys import rate_limiter, shared_usage
from gateway.keys.key_file import Limits, entry
from gateway.keys.key_ring import KeyRing
from gateway.keys.rate_limiter import MAX_DEBT_SECONDS, KeyLimitReached, KeyUsage
from gateway.keys.shared_usage import SharedUsage
from gateway.peers import gateways, service
from gateway.streaming.resumable_streams import Place
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_channel, open_stream
from mesh.rpc.server import Server, Servicer
from mesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.clock import Clock
from tests.e2e.support.stack import free_ports
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.peers.test_gateways import SEARCH, num_connected, take
from tests.gateway.sse import events
from tests.helpers import eventually

Reports = Callable[[], list[gateway_pb2.WatchKeyUsageResponse]]
KEY = {"authorization": "Bearer one"}


def ring(folder: Path, **limits: Any) -> KeyRing:
    """A key ring with alice's key."""
    path = folder / "keys"
    path.write_text(entry("alice", "one", Limits(**limits)))
    return KeyRing(str(path), ())


def use(keys: KeyRing) -> None:
    """One request of alice's. Raises KeyLimitReached."""
    limiter = keys.rate_limiter_of("alice")
    assert limiter is not None
    with limiter.request():
        pass


def test_reports_refund_only_what_they_charged(tmp_path: Path) -> None:
    """A first report of many tokens that shrinks later does not fill the bucket."""
    keys = ring(tmp_path, tokens_per_minute=10)
    limiter = keys.rate_limiter_of("alice")
    assert limiter is not None
    limiter.spend(500)
    usage = SharedUsage(keys)
    usage.received("a", [KeyUsage("alice", 0, 1, 10**9)])
    for num_tokens in (10**8, 0, -(10**18)):
        usage.received("a", [KeyUsage("alice", 0, 1, num_tokens)])
        with pytest.raises(KeyLimitReached, match="tokens a minute"):
            use(keys)
    # What was charged is refunded, as at the end of a request that was charged too much.
    usage.received("b", [])
    usage.received("b", [KeyUsage("alice", 0, 1, 1000)])
    usage.received("b", [KeyUsage("alice", 0, 1, 0)])
    limiter.spend(-500)
    use(keys)


def test_a_refund_is_at_most_what_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A charge that the longest debt has cut is refunded as it was cut."""
    clock = Clock()
    monkeypatch.setattr(rate_limiter, "time", clock)
    keys = ring(tmp_path, tokens_per_minute=600)
    limiter = keys.rate_limiter_of("alice")
    assert limiter is not None
    limiter.spend(30_000)  # leaves a debt of 29,400 tokens: 2,940 s at 10 tokens a second
    usage = SharedUsage(keys)
    usage.received("a", [])
    for num_tokens in (2**62, 0):
        usage.received("a", [KeyUsage("alice", 0, 1, num_tokens)])
    clock.now += 2939
    with pytest.raises(KeyLimitReached):
        use(keys)
    clock.now += 2
    use(keys)


def test_reports_lock_a_key_for_an_hour_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many requests and tokens they claim."""
    clock = Clock()
    monkeypatch.setattr(rate_limiter, "time", clock)
    keys = ring(tmp_path, tokens_per_minute=10, requests_per_second=1)
    usage = SharedUsage(keys)
    usage.received("a", [])
    usage.received("a", [KeyUsage("alice", 0, 2**64 - 1, 2**63 - 1)])
    with pytest.raises(KeyLimitReached):
        use(keys)
    clock.now += MAX_DEBT_SECONDS + 7
    use(keys)


def test_names_without_end_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway's further names do not count, nor do those that no key can have."""
    monkeypatch.setattr(shared_usage, "MAX_NAMES", 100)
    keys = ring(tmp_path, tokens_per_minute=10)
    usage = SharedUsage(keys)
    usage.received("a", [KeyUsage("alice", 0, 0, 0)])
    for begin in range(0, 1000, 100):
        usage.received("a", (KeyUsage(f"x-{n}", 1, 1, 1) for n in range(begin, begin + 100)))
        usage.received("b", [KeyUsage("y" * 10_000 + str(begin), 1, 1, 1)])
    assert [len(list(each.names)) for each in usage._reports.values()] == [100, 0]
    usage.received("a", [KeyUsage("alice", 0, 1, 100)])
    with pytest.raises(KeyLimitReached):
        use(keys)


def test_a_first_report_in_several_messages_is_not_charged(tmp_path: Path) -> None:
    """Totals from before the gateways knew each other, however many keys there are."""
    keys = ring(tmp_path, tokens_per_minute=10)
    usage = SharedUsage(keys)
    usage.received("a", [KeyUsage("x", 0, 1, 100)], more=True)
    usage.received("a", [KeyUsage("alice", 0, 1, 100)])
    use(keys)
    usage.received("a", [KeyUsage("alice", 0, 2, 200)])
    with pytest.raises(KeyLimitReached):
        use(keys)


class FalseGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers at a gateway's address."""

    def __init__(self) -> None:
        self.reports: Reports = list
        self.num_calls = 0
        self.resumed: list[str] = []

    async def WatchKeyUsage(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.num_calls += 1
        for report in self.reports():
            yield report
        await asyncio.Event().wait()

    async def ResumeStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.resumed.append(request.stream)
        yield gateway_pb2.ResumeStreamResponse(found=False)


@asynccontextmanager
async def serving(false: FalseGateway, address: str) -> AsyncIterator[None]:
    register = gateway_pb2_grpc.add_GatewayServiceServicer_to_server
    server = Server([Servicer(service.SERVICE, register, false)])
    await server.start(address)
    try:
        yield
    finally:
        await server.drain(timeout=0)


def report(instance: str, *usages: KeyUsage) -> gateway_pb2.WatchKeyUsageResponse:
    keys = [gateway_pb2.KeyUsage(**each._asdict()) for each in usages]
    return gateway_pb2.WatchKeyUsageResponse(instance=instance, keys=keys)


async def test_the_name_of_another_gateway_is_not_taken(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """Its use does not count twice, and its streams are read at its own address."""
    here, there, address = (f"127.0.0.1:{port}" for port in free_ports(3))
    host = ",".join((here, there, address))
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    false = FalseGateway()
    async with AsyncExitStack() as stack:
        settings = {"peers_host": host, "dns_refresh_seconds": 0.2}
        first = await stack.enter_async_context(start_gateway(peers_listen=here, **settings))
        second = await stack.enter_async_context(start_gateway(peers_listen=there, **settings))
        await eventually(lambda: num_connected(first) == 1, "they are connected", 20)
        name = second.dependencies.resumable_streams.instance
        false.reports = lambda: [report(name, KeyUsage("alice", 9, 9, 9))]
        await stack.enter_async_context(serving(false, address))
        elsewhere: Any = first.dependencies.resumable_streams.elsewhere
        await eventually(
            lambda: any("it is the gateway at" in g.problem for g in elsewhere._gateways.values()),
            "it is refused",
            20,
        )
        assert num_connected(first) == 1
        clients = [await stack.enter_async_context(client_of(server)) for server in (first, second)]
        async with clients[1].stream("GET", SEARCH) as response:
            last = (await take(events(response), 3))[-1].id or ""
        async with clients[0].stream("GET", SEARCH, headers={"last-event-id": last}) as response:
            assert response.status_code == 200
            await take(events(response), 1)
        assert false.resumed == []
        assert (await clients[0].delete(f"/api/v1/search/{last.rpartition('.')[0]}")).is_success


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: [report("")], id="no name"),
        pytest.param(lambda: [report("../../" + "x" * 6)], id="an odd name"),
        pytest.param(lambda: [report("A" * 12), report("B" * 12)], id="another name later"),
        pytest.param(
            lambda: [report("A" * 12, *[KeyUsage("alice", 1, 1, 1)] * 200)], id="too many keys"
        ),
        pytest.param(lambda: [report("A" * 12, KeyUsage("x" * 5000))], id="too large"),
    ],
)
async def test_unusable_reports_are_not_used(
    start_gateway: StartGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Reports,
) -> None:
    """The gateway goes on, and no key is refused for them."""
    monkeypatch.setattr(gateways, "MAX_KEYS", 100)
    monkeypatch.setattr(gateways, "MAX_RESPONSE_BYTES", 4000)
    monkeypatch.setattr(gateways, "RETRY_SECONDS", 0.01)
    ring(tmp_path, max_concurrent=1)
    here, address = (f"127.0.0.1:{port}" for port in free_ports(2))
    false = FalseGateway()
    false.reports = make
    settings = {"peers_listen": here, "peers_host": f"{here},{address}"}
    async with (
        serving(false, address),
        start_gateway(api_keys_file=str(tmp_path / "keys"), **settings) as server,
        client_of(server) as client,
    ):
        elsewhere: Any = server.dependencies.resumable_streams.elsewhere

        def is_refused() -> bool:
            known = elsewhere._gateways.get(address)
            return false.num_calls > 1 or (known is not None and known.problem != "")

        await eventually(is_refused, "its reports are refused", 20)
        await eventually(lambda: num_connected(server) == 0, "it does not count")
        body = {"prompt": "Hello", "max_tokens": 5}
        assert (await client.post("/v1/completions", json=body, headers=KEY)).status_code == 200


@pytest.fixture
def watched() -> str:
    """The address of a gateway for other gateways."""
    [port] = free_ports(1)
    return f"127.0.0.1:{port}"


async def test_watchers_are_limited(
    start_gateway: StartGateway, watched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one address, so that others can still follow; a place is free when one leaves."""
    monkeypatch.setattr(service, "MAX_WATCHERS_PER_HOST", 2)
    async with start_gateway(peers_listen=watched), AsyncExitStack() as stack:
        channel = open_channel(watched)
        stack.push_async_callback(channel.close)
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)

        def watching() -> Any:
            return open_stream(stub.WatchKeyUsage, gateway_pb2.WatchKeyUsageRequest())

        first = AsyncExitStack()
        for owner in (first, stack):
            await anext(await owner.enter_async_context(watching()))
        with pytest.raises(MeshError) as caught:
            async with watching() as refused:
                await anext(refused)
        assert caught.value.kind is ErrorKind.OVERLOADED
        await first.aclose()
        async with asyncio.timeout(10):
            while True:
                try:
                    async with watching() as accepted:
                        await anext(accepted)
                    break
                except MeshError:
                    await asyncio.sleep(0.01)


GARBAGE = (
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\0" * 100_000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 65536,
    # A frame of 16 MiB, of which nothing follows.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    b"\x16\x03\x01" + b"\xff" * 1000,
    b"",
)


async def test_garbage_at_the_port_disturbs_nothing(
    start_gateway: StartGateway, watched: str
) -> None:
    """Nor do messages beyond the limit, names that were guessed, and places that do not exist."""
    host, _, port = watched.partition(":")
    async with start_gateway(peers_listen=watched) as server, AsyncExitStack() as stack:
        for data in GARBAGE:
            stranger = stack.enter_context(socket.create_connection((host, int(port)), 10))
            with suppress(OSError):  # the server may refuse it before its end
                stranger.sendall(data)
        channel = grpc.aio.insecure_channel(watched)
        stack.push_async_callback(channel.close)
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.StopStream(
                gateway_pb2.StopStreamRequest(stream="x" * (17 << 20)), timeout=20
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        instance = server.dependencies.resumable_streams.instance
        for stream in ("", instance, instance + "A" * 22, "\0", "é" * 1000):
            request = gateway_pb2.StopStreamRequest(stream=stream)
            metadata = (("x-weir-key-name", "alice; x"),)
            assert not (await stub.StopStream(request, metadata=metadata, timeout=20)).found
            place = Place(stream, 2**32 - 1, is_last=False)
            resuming = gateway_pb2.ResumeStreamRequest(stream=stream, begin=place.begin)
            assert [each.found async for each in stub.ResumeStream(resuming)] == [False]
