"""API keys over HTTP: authentication, limits, reload, propagation of the name, secrecy."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from gateway.http.server import GatewayServer
from gateway.keys import key_ring, rate_limiter
from gateway.keys.key_file import NO_LIMITS, Limits, entry
from gateway.keys.rate_limiter import Bucket
from gateway.settings import GatewaySettings
from mesh.observability import log
from tests.clock import Clock
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.helpers import eventually

SEARCH = {"query": "AI", "streaming": "true"}
TEXT = {"prompt": "Hello", "max_tokens": 5}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate_limiter, "time", clock)
    return clock


@asynccontextmanager
async def keyed(
    start_gateway: StartGateway, path: Path, limits: Limits = NO_LIMITS
) -> AsyncIterator[tuple[GatewayServer, httpx.AsyncClient]]:
    """Start a gateway with alice's key "one", and a client that sends it."""
    path.write_text(entry("alice", "one", limits))
    async with start_gateway(api_keys_file=str(path)) as server, client_of(server) as client:
        client.headers["authorization"] = "Bearer one"
        yield server, client


def test_a_bucket_refills_and_may_be_overdrawn(clock: Clock) -> None:
    """A negative balance is refilled at the bucket's rate; capacity is the maximum."""
    bucket = Bucket(rate=2, capacity=10)
    bucket.take(14)
    assert bucket.seconds_until(1) == 2.5
    clock.now += 2.5
    assert bucket.seconds_until(1) == 0
    clock.now += 1000
    bucket.take(10)
    assert bucket.seconds_until(1) == 0.5


async def test_the_name_of_the_key_is_sent_upstream(
    start_gateway: StartGateway, tmp_path: Path, orchestrator: FakeOrchestrator
) -> None:
    """The request context of upstream calls has the name of the key."""
    async with keyed(start_gateway, tmp_path / "keys") as (_, client):
        assert (await client.get("/api/v1/search", params=SEARCH)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
    assert [context.key_name for context in orchestrator.contexts] == ["alice", "alice"]


async def test_unknown_routes_require_a_key(start_gateway: StartGateway, tmp_path: Path) -> None:
    """Without a key, unknown paths are 401, not 404; the page and the probes need no key."""
    async with keyed(start_gateway, tmp_path / "keys") as (_, client):
        del client.headers["authorization"]
        for path in ("/no", "/v1/no", "/v2/models", "//v1/models", "/api"):
            assert (await client.get(path)).status_code == 401
        for path in ("/", "/search.js", "/livez", "/readyz", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


async def test_a_key_may_be_in_x_api_key(
    start_gateway: StartGateway, tmp_path: Path, orchestrator: FakeOrchestrator
) -> None:
    """A bearer token precedes it; another scheme, such as a proxy's own, does not."""
    cases = [
        ({"x-api-key": "one"}, 200),
        ({"x-api-key": "one", "authorization": "Basic abc"}, 200),
        ({"x-api-key": "two"}, 401),
        ({"x-api-key": "one", "authorization": "Bearer two"}, 401),
        ({"x-api-key": ""}, 401),
    ]
    async with keyed(start_gateway, tmp_path / "keys") as (_, client):
        del client.headers["authorization"]
        statuses = [
            (await client.get("/v1/models", headers=headers)).status_code for headers, _ in cases
        ]
    assert statuses == [status for _, status in cases]
    assert orchestrator.contexts[0].key_name == "alice"


async def test_key_errors_of_the_messages_api_have_anthropics_form(
    start_gateway: StartGateway, tmp_path: Path, orchestrator: FakeOrchestrator
) -> None:
    """401, and 429 at the key's own limit; 529 is for the load of the server."""
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    limits = Limits(requests_per_second=1e-3)
    async with keyed(start_gateway, tmp_path / "keys", limits) as (_, client):
        anonymous = await client.post("/v1/messages", json=body, headers={"authorization": ""})
        accepted = await client.post("/v1/messages", json=body)
        refused = await client.post("/v1/messages", json=body)
    assert accepted.status_code == 200
    for response, status, kind in (
        (anonymous, 401, "authentication_error"),
        (refused, 429, "rate_limit_error"),
    ):
        assert response.status_code == status
        assert response.json()["error"]["type"] == kind
    assert int(refused.headers["retry-after"]) >= 1000


async def test_the_priority_of_a_key_is_bounded(
    start_gateway: StartGateway, tmp_path: Path, orchestrator: FakeOrchestrator
) -> None:
    """By its own bound, else by 0, over all generation APIs; without keys by the field's."""
    messages = [{"role": "user", "content": "Hi"}]
    bodies = {
        "/v1/completions": {"prompt": "Hi"},
        "/v1/chat/completions": {"messages": messages},
        "/v1/messages": {"messages": messages},
        "/v1/responses": {"input": "Hi", "store": False},
    }
    path = tmp_path / "keys"
    async with keyed(start_gateway, path, Limits(min_priority=-5)) as (_, client):
        for route, body in bodies.items():
            fields = {**body, "max_tokens": 5, "service_tier": "auto"}
            accepted = await client.post(route, json={**fields, "priority": -5})
            assert accepted.status_code == 200, accepted.text
            assert "x-ignored-fields" not in accepted.headers or route == "/v1/responses"
            assert orchestrator.requests[-1].sampling.priority == -5  # type: ignore[attr-defined]
            refused = await client.post(route, json={**fields, "priority": -6})
            message = "priority must be at least -5 for this key, given -6"
            assert (refused.status_code, refused.json()["error"]["message"]) == (400, message)
    async with keyed(start_gateway, path) as (_, client):
        body = {**bodies["/v1/completions"], "max_tokens": 5}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        refused = await client.post("/v1/completions", json={**body, "priority": -1})
        assert "at least 0 for this key" in refused.text
    async with start_gateway() as server, client_of(server) as client:
        for priority, status in ((-100, 200), (100, 200), (101, 400)):
            response = await client.post("/v1/completions", json={**body, "priority": priority})
            assert response.status_code == status


async def test_concurrent_requests_of_a_key_are_limited(
    start_gateway: StartGateway, tmp_path: Path, orchestrator: FakeOrchestrator
) -> None:
    """A request above max_concurrent is a 429 with Retry-After, until another one ends."""
    orchestrator.script = Script(endless=True, seconds_before_delta=0.02)
    async with keyed(start_gateway, tmp_path / "keys", Limits(max_concurrent=1)) as (_, client):
        async with client.stream("GET", "/api/v1/search", params=SEARCH) as response:
            assert response.status_code == 200
            refused = await client.get("/api/v1/search", params=SEARCH)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert "1 requests at once" in refused.json()["error"]["message"]
        orchestrator.script = Script()
        await eventually(lambda: orchestrator.num_running == 0, "the stream has ended")
        async with asyncio.timeout(5):
            while (await client.post("/v1/completions", json=TEXT)).status_code != 200:
                await asyncio.sleep(0.01)


async def test_the_request_rate_of_a_key_is_limited(
    start_gateway: StartGateway, tmp_path: Path, clock: Clock
) -> None:
    """Retry-After is the time until the next request is allowed."""
    limits = Limits(requests_per_second=0.1)
    async with keyed(start_gateway, tmp_path / "keys", limits) as (_, client):
        assert (await client.get("/v1/models")).status_code == 200
        refused = await client.get("/v1/models")
        assert refused.status_code == 429
        assert 10 <= int(refused.headers["retry-after"]) <= 12
        clock.now += 10
        assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("disconnects", [False, True])
async def test_tokens_are_charged_after_the_request(
    start_gateway: StartGateway,
    tmp_path: Path,
    clock: Clock,
    orchestrator: FakeOrchestrator,
    disconnects: bool,
) -> None:
    """Prompt and completion tokens are charged, also after a disconnect; the bucket refills."""
    if disconnects:
        orchestrator.script = Script(deltas=["a"], endless=True, seconds_before_delta=0.001)
    limits = Limits(tokens_per_minute=6)
    async with keyed(start_gateway, tmp_path / "keys", limits) as (server, client):
        body = {**TEXT, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if disconnects and '"a"' in line:
                    break
        await eventually(lambda: server.dependencies.drain.num_active == 0, "it has ended")
        refused = await client.post("/v1/completions", json=TEXT)
        assert refused.status_code == 429
        # 7 prompt tokens and at least 1 completion token were taken from a bucket of 6.
        assert int(refused.headers["retry-after"]) >= 30
        clock.now += 7200
        orchestrator.script = Script()
        assert (await client.post("/v1/completions", json=TEXT)).status_code == 200


async def test_limits_are_separate_for_each_key(
    start_gateway: StartGateway, tmp_path: Path, clock: Clock
) -> None:
    """A key at its limit does not affect another key."""
    path = tmp_path / "keys"
    limits = Limits(requests_per_second=0.1)
    async with keyed(start_gateway, path, limits) as (server, client):
        path.write_text(entry("alice", "one", limits) + entry("bob", "two", limits))
        server.dependencies.keys.reload()
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 429
        client.headers["authorization"] = "Bearer two"
        assert (await client.get("/v1/models")).status_code == 200


async def test_keys_are_reloaded_while_requests_run(
    start_gateway: StartGateway,
    tmp_path: Path,
    orchestrator: FakeOrchestrator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replaced symlink is reloaded, running streams continue, invalid files are ignored."""
    monkeypatch.setattr(key_ring, "CHECK_SECONDS", 0.01)
    orchestrator.script = Script(endless=True, seconds_before_delta=0.01)
    for name, text in (("v1", entry("alice", "one")), ("v2", entry("bob", "two")), ("v3", "[x")):
        (tmp_path / name).write_text(text)
    link = tmp_path / "keys"

    def point_to(name: str) -> None:
        (tmp_path / "new").symlink_to(tmp_path / name)
        os.replace(tmp_path / "new", link)

    point_to("v1")
    async with start_gateway(api_keys_file=str(link)) as server, client_of(server) as client:
        keys = server.dependencies.keys
        client.headers["authorization"] = "Bearer one"
        async with client.stream("GET", "/api/v1/search", params=SEARCH) as response:
            point_to("v2")
            await eventually(lambda: keys.find("two") is not None, "the new key is known")
            assert (await client.get("/v1/models")).status_code == 401
            lines = response.aiter_lines()
            for _ in range(50):
                await anext(lines)
        point_to("v3")
        await asyncio.sleep(0.1)
        link.unlink()
        await asyncio.sleep(0.1)
        client.headers["authorization"] = "Bearer two"
        assert (await client.get("/v1/models")).status_code == 200


async def test_keys_are_never_logged(
    start_gateway: StartGateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At DEBUG, valid and invalid keys are absent from the log; the key's name is present."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    log.configure("gateway", "DEBUG", "json")
    try:
        secret = "weir_sEcReT-key"
        path = tmp_path / "keys"
        path.write_text(entry("alice", secret))
        async with start_gateway(api_keys_file=str(path)) as server, client_of(server) as client:
            for key in (secret, f"{secret}x"):
                headers = {"authorization": f"Bearer {key}"}
                await client.get("/api/v1/search", params=SEARCH, headers=headers)
                await client.post("/v1/completions", content=b"{", headers=headers)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    shown = capfd.readouterr()
    assert "sEcReT" not in shown.err + shown.out
    lines = [json.loads(line) for line in shown.err.splitlines() if line.startswith("{")]
    access = [line for line in lines if line.get("logger") == "gateway.access"]
    finished = [line for line in access if line["message"] == "request finished"]
    assert [line.get("key_name") for line in finished] == ["alice", "alice", None, None]


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "[::]:8080", "10.0.0.1:80", "host:80"])
def test_without_keys_only_loopback_addresses_are_allowed(address: str) -> None:
    """Other addresses require API keys or allow_anonymous."""
    with pytest.raises(ValidationError, match="GATEWAY_API_KEYS_FILE"):
        GatewaySettings.model_validate({"listen": address})
    for settings in ({"allow_anonymous": True}, {"api_keys": "k"}, {"api_keys_file": "/f"}):
        assert GatewaySettings.model_validate({"listen": address, **settings}).listen == address
    for loopback in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"):
        assert GatewaySettings.model_validate({"listen": loopback}).listen == loopback
