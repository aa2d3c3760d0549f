"""Calls to the replicas that a name resolves to, while replicas come, drain and are lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from mesh.context import RequestContext, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc import server as rpc_server
from mesh.rpc.channel import call_unary, open_stream
from mesh.rpc.peers import balanced_channel, change_report, discovery, health_watch
from mesh.rpc.peers.balanced_channel import BalancedChannel
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.helpers import Served, eventually, serve

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("no_tasks_left")]

SERVICE = "mesh.v1.TokenizerService"
ASKED = tokenizer_pb2.EncodeRequest(text="a")
STREAM = tokenizer_pb2.GetTokenizerRequest()


class Replica(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Counts its calls, and fails them as `failure` says."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.failure: MeshError | None = None
        self.broken = False
        """Ends calls with a status that no handler of Weir sends, as a broken connection does."""
        self.go_on = asyncio.Event()
        self.num_open = 0

    async def Encode(self, request, context):  # type: ignore[no-untyped-def]
        self.num_calls += 1
        if self.broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if self.failure is not None:
            raise self.failure
        return tokenizer_pb2.EncodeResponse(token_ids=[1])

    async def GetTokenizer(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        """One part at once, and one when the test says so."""
        self.num_calls += 1
        if self.broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        self.num_open += 1
        try:
            yield tokenizer_pb2.GetTokenizerResponse(file_name="first")
            await self.go_on.wait()
            yield tokenizer_pb2.GetTokenizerResponse(file_name="last")
        finally:
            self.num_open -= 1


@asynccontextmanager
async def serving(replica: Replica) -> AsyncIterator[Served]:
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, replica)) as served:
        yield served


class Names:
    """A resolver whose answer a test changes; no addresses: the name is unknown."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = set(addresses)
        self.num_lookups = 0

    async def resolve(self, target: str) -> set[str]:
        self.num_lookups += 1
        if not self.addresses:
            raise OSError("unknown name")
        return set(self.addresses)


class Client:
    """A channel to the replicas of one name, and its stub."""

    def __init__(self, names: Names, *, refresh: float, hold: float) -> None:
        self.channel = BalancedChannel(
            "tokenizer:50052",
            SERVICE,
            refresh_seconds=refresh,
            hold_seconds=hold,
            resolve=names.resolve,
        )
        self.stub = tokenizer_pb2_grpc.TokenizerServiceStub(self.channel)

    async def encode(self, timeout: float = 10.0, *, hold: bool = True) -> None:
        await call_unary(self.stub.Encode, ASKED, timeout, hold=hold)

    async def has_ready(self, *addresses: str) -> None:
        def ready() -> bool:
            return {peer.address for peer in self.channel.ready} == set(addresses)

        await eventually(ready, f"only {addresses} are ready")


@asynccontextmanager
async def client_of(
    names: Names, refresh: float = 60.0, hold: float = 10.0
) -> AsyncIterator[Client]:
    """By default names are looked up only at the start and when a peer is lost."""
    client = Client(names, refresh=refresh, hold=hold)
    async with client.channel.running():
        yield client


@asynccontextmanager
async def two_replicas(one: Replica, two: Replica) -> AsyncIterator[tuple[Client, Served, Served]]:
    """A client for which both are ready."""
    async with (
        serving(one) as a,
        serving(two) as b,
        client_of(Names(a.address, b.address)) as client,
    ):
        await client.has_ready(a.address, b.address)
        yield client, a, b


@pytest.fixture(autouse=True)
def quick_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "URGENT_SECONDS", 0.02)


async def test_a_rollout_of_the_only_replica_refuses_no_call() -> None:
    """The old one drains before the name service has the new one; its stream runs to its end."""
    old, new = Replica(), Replica()
    async with serving(old) as first, serving(new) as second:
        names = Names(first.address)
        async with client_of(names) as client, open_stream(client.stub.GetTokenizer, STREAM) as got:
            assert (await anext(got)).file_name == "first"
            draining = asyncio.create_task(first.server.drain(timeout=20))
            calls = [asyncio.create_task(client.encode()) for _ in range(5)]
            await eventually(lambda: not client.channel.is_ready, "none is ready")
            calls += [asyncio.create_task(client.encode()) for _ in range(5)]
            await eventually(lambda: names.num_lookups > 5, "the name is looked up again and again")
            assert not any(call.done() for call in calls[5:])
            names.addresses = {second.address}
            await asyncio.gather(*calls)
            assert new.num_calls >= 5
            assert [peer.address for peer in client.channel.ready] == [second.address]
            old.go_on.set()
            assert [part.file_name async for part in got] == ["last"]
            assert await draining == 0, "no call was aborted"


async def test_an_added_replica_gets_its_share() -> None:
    """At the next lookup, without the loss of another one."""
    replicas = [Replica(), Replica(), Replica()]
    async with serving(replicas[0]) as a, serving(replicas[1]) as b, serving(replicas[2]) as c:
        names = Names(a.address, b.address)
        async with client_of(names, refresh=0.05) as client:
            await client.has_ready(a.address, b.address)
            names.addresses.add(c.address)
            await client.has_ready(a.address, b.address, c.address)
            for _ in range(30):
                await client.encode()
            assert replicas[2].num_calls == 10


async def test_the_replica_with_the_fewest_calls_is_chosen() -> None:
    """So that a new replica gets the new streams until it has as many as the others."""
    one, two = Replica(), Replica()
    async with serving(one) as a, serving(two) as b:
        names = Names(a.address)
        async with client_of(names, refresh=0.05) as client:
            streams = [open_stream(client.stub.GetTokenizer, STREAM) for _ in range(6)]
            for stream in streams[:3]:
                await anext(await stream.__aenter__())
            names.addresses.add(b.address)
            await client.has_ready(a.address, b.address)
            for stream in streams[3:]:
                await anext(await stream.__aenter__())
            assert (one.num_open, two.num_open) == (3, 3)
            for stream in streams:
                await stream.__aexit__(None, None, None)
            assert [peer.num_active for peer in client.channel.ready] == [0, 0]


async def test_calls_are_held_for_a_limited_time_only() -> None:
    """Later ones are refused at once, until a replica is ready again."""
    replica = Replica()
    async with serving(replica) as served, client_of(Names(served.address), hold=0.3) as client:
        await client.encode()
        await served.server.set_ready(False)
        await eventually(lambda: not client.channel.is_ready, "none is ready")
        replica.failure = MeshError(ErrorKind.UNAVAILABLE, "no memory")
        began = time.monotonic()
        # Its own error says more than that it is not ready.
        with pytest.raises(MeshError, match="no memory"):
            await client.encode()
        assert 0.1 < time.monotonic() - began < 5
        began = time.monotonic()
        with pytest.raises(MeshError, match="no memory"):
            await client.encode()
        assert time.monotonic() - began < 0.25
        replica.failure = None
        await served.server.set_ready(True)
        await client.has_ready(served.address)
        await client.encode()


async def test_without_any_replica_a_call_is_unavailable() -> None:
    """With a delay after which to retry; the deadline of the request ends the wait sooner."""
    async with client_of(Names(), hold=0.1) as client:
        with pytest.raises(MeshError, match="no tokenizer is ready") as caught:
            await client.encode()
        assert (caught.value.kind, caught.value.retry_after) == (ErrorKind.UNAVAILABLE, 1.0)
    async with client_of(Names(), hold=60) as client:
        request = RequestContext(request_id="r", deadline=time.monotonic() + 0.1)
        with use_request(request), pytest.raises(MeshError) as late:
            await client.encode()
        assert late.value.kind is ErrorKind.DEADLINE
        with pytest.raises(MeshError, match="no tokenizer is ready"):
            await client.encode(hold=False)


async def test_a_replica_without_what_a_call_needs_passes_it_on() -> None:
    """If all lack it, the caller gets the reason; both stay ready."""
    lacking, other = Replica(), Replica()
    lacking.failure = MeshError(ErrorKind.UNAVAILABLE, "no engine is ready")
    async with two_replicas(lacking, other) as (client, _, _):
        for _ in range(4):
            await client.encode()
        assert other.num_calls == 4
        other.failure = lacking.failure
        with pytest.raises(MeshError, match="no engine is ready"):
            await client.encode()
        assert len(client.channel.ready) == 2


async def test_a_late_health_check_does_not_exclude_a_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy replica may answer it too late; it is ready again as soon as its watch says so."""
    busy, other = Replica(), Replica()
    busy.failure = MeshError(ErrorKind.UNAVAILABLE, "no engine is ready")
    async with two_replicas(busy, other) as (client, a, b):
        monkeypatch.setattr(health_watch, "CONFIRM_SECONDS", 1e-6)
        for _ in range(2):  # each is chosen once
            await client.encode()
        assert (busy.num_calls, other.num_calls) == (1, 2)
        await client.has_ready(a.address, b.address)


@pytest.mark.parametrize("num_broken", [1, 2, 3])
async def test_a_broken_call_is_repeated_elsewhere(num_broken: int) -> None:
    """Unless it has broken three: it may be the cause."""
    replicas = [Replica() for _ in range(4)]
    for replica in replicas[:num_broken]:
        replica.broken = True
    async with AsyncExitStack() as stack:
        served = [await stack.enter_async_context(serving(replica)) for replica in replicas]
        addresses = [each.address for each in served]
        client = await stack.enter_async_context(client_of(Names(*addresses)))
        await client.has_ready(*addresses)
        for peer in client.channel.ready:
            peer.num_active = addresses.index(peer.address)  # they are chosen in this order
        if num_broken < 3:
            await client.encode()
        else:
            with pytest.raises(MeshError, match="unreachable"):
                await client.encode()
        called = [replica.num_calls for replica in replicas]
    assert called == [int(number <= min(num_broken, 2)) for number in range(4)]


async def test_a_stream_is_not_repeated_after_its_first_message() -> None:
    """Before that it is."""
    one, two = Replica(), Replica()
    one.broken = True
    async with two_replicas(one, two) as (client, _, b):
        for peer in client.channel.ready:
            peer.num_active = int(peer.address == b.address)
        async with open_stream(client.stub.GetTokenizer, STREAM) as got:
            assert (await anext(got)).file_name == "first"
            assert (one.num_calls, two.num_calls) == (1, 1)
            await b.server.drain(timeout=0)
            with pytest.raises(MeshError) as caught:
                await anext(got)
            assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert (one.num_calls, two.num_calls) == (1, 1)


async def test_a_record_may_disappear_before_its_replica() -> None:
    """The replica is used while no other one is ready, and closed when its calls have ended."""
    old, new = Replica(), Replica()
    async with serving(old) as a, serving(new) as b:
        await b.server.set_ready(False)
        names = Names(a.address)
        async with client_of(names, refresh=0.05) as client:
            await client.has_ready(a.address)
            names.addresses = {b.address}
            await eventually(lambda: b.address in client.channel._peers, "the new one is known")
            await client.encode()
            assert old.num_calls == 1
            async with open_stream(client.stub.GetTokenizer, STREAM) as got:
                await anext(got)
                await b.server.set_ready(True)
                await client.has_ready(b.address)
                old.go_on.set()
                assert (await anext(got)).file_name == "last"
            await eventually(lambda: list(client.channel._peers) == [b.address], "the old is gone")


async def test_an_unknown_name_keeps_its_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an address that is unreachable for long is dropped: another pod may get it."""
    monkeypatch.setattr(balanced_channel, "FORGET_SECONDS", 0.2)
    replica = Replica()
    async with serving(replica) as served:
        names = Names(served.address)
        async with client_of(names, refresh=0.02, hold=0.05) as client:
            await client.has_ready(served.address)
            names.addresses = set()
            looked_up = names.num_lookups
            await eventually(lambda: names.num_lookups > looked_up + 3, "lookups fail")
            await client.encode()
            await served.server.drain(timeout=0)
            await eventually(lambda: not client.channel._peers, "it is forgotten")


async def test_a_connection_at_its_greatest_age_is_no_loss(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No call fails, and nothing is logged but that the replica is ready."""
    monkeypatch.setattr(rpc_server, "MAX_CONNECTION_AGE_SECONDS", 0.2)
    monkeypatch.setattr(rpc_server, "MAX_CONNECTION_AGE_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(change_report, "ROUTINE_SECONDS", 0.5)
    caplog.set_level(logging.INFO, "mesh.rpc.peers")
    async with serving(Replica()) as served, client_of(Names(served.address)) as client:
        changes = 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end or changes < 2:
            changed = client.channel.next_change()
            await client.encode()
            await asyncio.sleep(0.01)
            changes += changed.is_set()
    assert [record.message for record in caplog.records] == ["peer ready"]


async def test_a_drain_is_logged_as_routine_and_a_loss_as_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once each, with the address."""
    monkeypatch.setattr(change_report, "ROUTINE_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "mesh.rpc.peers")

    def logged() -> list[tuple[str, str]]:
        return [(record.levelname, record.message) for record in caplog.records]

    async with serving(Replica()) as served, client_of(Names(served.address)) as client:
        await client.has_ready(served.address)
        await served.server.set_ready(False)
        await eventually(lambda: logged()[-1:] == [("INFO", "peer not ready")], "it drains")
        await served.server.set_ready(True)
        await eventually(lambda: logged()[-1:] == [("INFO", "peer ready")], "it is back")
        await served.server._server.stop(grace=None)
        await eventually(lambda: logged()[-1:] == [("WARNING", "peer lost")], "it is lost")


async def test_a_final_refusal_is_not_tried_at_another_replica() -> None:
    """The replica says that another one would refuse as well."""
    one, two = Replica(), Replica()
    for each in (one, two):
        each.failure = MeshError(ErrorKind.UNAVAILABLE, "asleep", retry_after=7, is_final=True)
    async with two_replicas(one, two) as (client, *_):
        with pytest.raises(MeshError) as caught:
            await client.encode()
    assert one.num_calls + two.num_calls == 1
    assert (caught.value.retry_after, caught.value.is_final) == (7, True)
