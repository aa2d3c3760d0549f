"""Two gateways that share the limits of keys and read each other's resumable streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from gateway.http.server import GatewayServer
from gateway.keys import rate_limiter
from gateway.keys.key_file import NO_LIMITS, Limits, entry
from gateway.keys.key_ring import KeyRing
from gateway.keys.rate_limiter import KeyLimitReached, KeyUsage
from gateway.keys.shared_usage import SharedUsage
from gateway.observability import metrics
from tests.clock import Clock
from tests.e2e.support.stack import free_ports
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.sse import Event, events
from tests.helpers import eventually

SEARCH = "/api/v1/search?query=AI&streaming=true&resumable=true"
TEXT = {"prompt": "Hello", "max_tokens": 5}
DELTAS = [f"{number} " for number in range(20)]


class Pair(NamedTuple):
    """Two gateways, and a client of each with alice's key."""

    servers: list[GatewayServer]
    clients: list[httpx.AsyncClient]


@asynccontextmanager
async def pair_of(
    start_gateway: StartGateway, folder: Path, limits: Limits = NO_LIMITS, **more: object
) -> AsyncIterator[Pair]:
    """Start two gateways that are connected to each other."""
    path = folder / "keys"
    path.write_text(entry("alice", "one", limits) + "\n" + entry("bob", "two"))
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    async with AsyncExitStack() as stack:
        pair = Pair([], [])
        for address in addresses:
            settings = {"peers_listen": address, "peers_host": ",".join(addresses), **more}
            starting = start_gateway(api_keys_file=str(path), dns_refresh_seconds=0.2, **settings)
            server = await stack.enter_async_context(starting)
            client = await stack.enter_async_context(client_of(server))
            client.headers["authorization"] = "Bearer one"
            pair.servers.append(server)
            pair.clients.append(client)
        # One sees the other; the gauge is the last one's.
        await eventually(lambda: all(map(num_connected, pair.servers)), "they are connected")
        assert [num_connected(server) for server in pair.servers] == [1, 1]
        yield pair


def num_connected(server: GatewayServer) -> int:
    """The gateways that a gateway is connected to, itself excluded."""
    elsewhere = server.dependencies.resumable_streams.elsewhere
    return getattr(elsewhere, "num_connected", 0)


async def refused(client: httpx.AsyncClient) -> bool:
    """Whether a request of the key is refused at its limit."""
    response = await client.post("/v1/completions", json=TEXT)
    assert response.status_code in (200, 429)
    return response.status_code == 429


async def until(client: httpx.AsyncClient, *, is_refused: bool) -> None:
    """Send requests until one is refused, or accepted."""
    async with asyncio.timeout(10):
        while await refused(client) is not is_refused:
            await asyncio.sleep(0.01)


async def take(stream: AsyncIterator[Event], number: int) -> list[Event]:
    return [await anext(stream) for _ in range(number)]


def text_of(received: list[Event]) -> str:
    return "".join(event.data["token"] for event in received if event.name == "token")


async def test_a_stream_is_resumed_at_any_gateway(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """No token is lost or doubled, there is one generation, and 204 ends it everywhere."""
    orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.01)
    async with pair_of(start_gateway, tmp_path) as (servers, clients):
        received: list[Event] = []
        last: dict[str, str] = {}
        for number in range(4):
            async with clients[number % 2].stream("GET", SEARCH, headers=last) as response:
                assert response.status_code == 200
                received += await take(events(response), 4)
            last = {"last-event-id": received[-1].id or ""}
        async with clients[1].stream("GET", SEARCH, headers=last) as response:
            received += [event async for event in events(response)]
        assert text_of(received) == "".join(DELTAS)
        assert len(orchestrator.requests) == 1
        assert len(servers[0].dependencies.resumable_streams) == 1
        done = await clients[1].get(SEARCH, headers={"last-event-id": received[-1].id or ""})
        assert done.status_code == 204
        assert len(servers[0].dependencies.resumable_streams) == 0


async def test_a_stream_elsewhere_belongs_to_its_key(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """Another key can neither read nor stop it; its own key can stop it at any gateway."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    other = {"authorization": "Bearer two"}
    async with pair_of(start_gateway, tmp_path) as (_, clients):
        async with clients[0].stream("GET", SEARCH) as response:
            last = (await take(events(response), 3))[-1].id or ""
            stream = f"/api/v1/search/{last.rpartition('.')[0]}"
            headers = {**other, "last-event-id": last}
            assert (await clients[1].get(SEARCH, headers=headers)).status_code == 410
            assert (await clients[1].delete(stream, headers=other)).status_code == 404
            assert (await clients[1].delete(stream)).status_code == 204
        await eventually(lambda: orchestrator.num_running == 0, "the generation ends")
        assert (await clients[1].delete(stream)).status_code == 404
        gone = await clients[1].get(SEARCH, headers={"last-event-id": last})
        assert gone.json()["error"]["code"] == "stream_gone"


async def test_a_disconnect_elsewhere_begins_the_grace_period(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """The gateway of the stream has its reader until the client of the other one disconnects."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with pair_of(start_gateway, tmp_path) as (servers, clients):
        async with clients[0].stream("GET", SEARCH) as response:
            last = (await take(events(response), 3))[-1].id or ""
        drain = servers[0].dependencies.drain
        async with clients[1].stream("GET", SEARCH, headers={"last-event-id": last}) as response:
            await take(events(response), 3)
            assert drain.num_active == 1
        await eventually(lambda: drain.num_active == 0, "the reader has left")
        assert orchestrator.num_cancelled == 0
    await eventually(lambda: orchestrator.num_running == 0, "the generation ends")


async def test_concurrent_requests_count_over_all_gateways(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """A key at its limit at one gateway is refused at the other, until its requests end."""
    async with pair_of(start_gateway, tmp_path, Limits(max_concurrent=2)) as (_, clients):
        orchestrator.scripts = [Script(endless=True, seconds_before_delta=0.02) for _ in range(2)]
        async with clients[0].stream("POST", "/v1/completions", json={**TEXT, "stream": True}):
            async with clients[1].stream("POST", "/v1/completions", json={**TEXT, "stream": True}):
                await until(clients[0], is_refused=True)
                await until(clients[1], is_refused=True)
                theirs = await clients[1].post(
                    "/v1/completions", json=TEXT, headers={"authorization": "Bearer two"}
                )
                assert theirs.status_code == 200
            await until(clients[0], is_refused=False)


async def test_tokens_and_requests_count_over_all_gateways(
    start_gateway: StartGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a key used at one gateway is missing from its buckets at the other."""
    clock = Clock()
    monkeypatch.setattr(rate_limiter, "time", clock)
    limits = Limits(tokens_per_minute=9)
    async with pair_of(start_gateway, tmp_path, limits) as (_, clients):
        # 7 prompt tokens and 3 of the completion overdraw the bucket at both.
        assert not await refused(clients[0])
        assert await refused(clients[0])
        await until(clients[1], is_refused=True)
        clock.now += 3600
        assert not await refused(clients[1])


async def test_requests_of_a_lost_gateway_do_not_count(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """They ended with it; a new gateway at its address is found again."""
    async with pair_of(start_gateway, tmp_path, Limits(max_concurrent=1)) as (servers, clients):
        orchestrator.scripts = [Script(endless=True, seconds_before_delta=0.02)]
        body = {**TEXT, "stream": True}
        async with clients[1].stream("POST", "/v1/completions", json=body):
            await until(clients[0], is_refused=True)
            elsewhere = servers[0].dependencies.resumable_streams.elsewhere
            [task] = [
                task
                for address, task in elsewhere._tasks.items()  # type: ignore[union-attr]
                if elsewhere._gateways[address].instance  # type: ignore[union-attr]
            ]
            task.cancel()
            await until(clients[0], is_refused=False)
    assert metrics.GATEWAYS_CONNECTED._value.get() == 0


async def test_an_unknown_gateway_is_410(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """The stream of a gateway that does not exist any more cannot be resumed."""
    async with pair_of(start_gateway, tmp_path) as (_, clients):
        for stream in ("x", "A" * 34):
            headers = {"last-event-id": f"{stream}.3"}
            assert (await clients[0].get(SEARCH, headers=headers)).status_code == 410
    assert orchestrator.requests == []


def test_use_before_the_first_report_is_not_charged_again(tmp_path: Path) -> None:
    """The first report of a gateway is the basis; a key that is new later counts from zero."""
    path = tmp_path / "keys"
    limits = Limits(requests_per_second=0.001, max_concurrent=5)
    path.write_text(entry("alice", "one", limits) + "\n" + entry("bob", "two", limits))
    keys = KeyRing(str(path), ())
    usage = SharedUsage(keys)
    usage.received("a", [KeyUsage("alice", 1, 100, 0)])
    usage.received("a", [KeyUsage("bob", 0, 1, 0), KeyUsage("stranger", 9, 9, 9)])
    with keys.rate_limiter_of("alice").request():  # type: ignore[union-attr]
        pass
    with pytest.raises(Exception, match="requests a second"), keys.rate_limiter_of("bob").request():  # type: ignore[union-attr]
        pass


async def test_a_gateway_that_does_not_listen_yet_is_not_logged(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods that start are listed: the others connect when they listen."""
    monkeypatch.setattr("gateway.peers.gateways.RETRY_SECONDS", 0.01)
    caplog.set_level("INFO")
    here, there = (f"127.0.0.1:{port}" for port in free_ports(2))
    async with start_gateway(peers_listen=here, peers_host=f"{here},{there}") as server:
        elsewhere = server.dependencies.resumable_streams.elsewhere
        await eventually(
            lambda: any(each.is_this for each in elsewhere._gateways.values()),  # type: ignore[union-attr]
            "it has found itself",
        )
        await asyncio.sleep(0.2)
        assert "call failed" not in caplog.text
        async with start_gateway(peers_listen=there):
            await eventually(lambda: num_connected(server) == 1, "it has found the other one", 10)


def test_new_limits_refund_nothing_at_other_gateways(tmp_path: Path) -> None:
    """The totals of a key go on under new limits; of a key that was removed they begin again."""
    path = tmp_path / "keys"
    path.write_text(entry("alice", "one", Limits(tokens_per_minute=10)))
    keys = KeyRing(str(path), ())
    limiter = keys.rate_limiter_of("alice")
    assert limiter is not None
    with limiter.request():
        limiter.spend(500)
    path.write_text(entry("alice", "one", Limits(tokens_per_minute=20)))
    keys.reload()
    assert keys.rate_limiter_of("alice") is not limiter
    assert keys.usage("alice") == KeyUsage("alice", 0, 1, 500)

    usage = SharedUsage(keys)
    usage.received("a", [])
    usage.received("a", [KeyUsage("alice", 0, 50, 5000)])
    usage.received("a", [KeyUsage("alice", 0, 1, 0)])  # removed there, and added again
    with pytest.raises(KeyLimitReached, match="tokens a minute"), _request(keys):
        pass


def _request(keys: KeyRing) -> AbstractContextManager[None]:
    limiter = keys.rate_limiter_of("alice")
    assert limiter is not None
    return limiter.request()
