"""Probes, request ids, API keys, metrics, the access log, OpenAPI and the search page."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from html.parser import HTMLParser

import httpx
import pytest
from prometheus_client import REGISTRY

from gateway.api.page import FOLDER, STATIC_FILES
from gateway.upstream import readiness
from mesh.errors import ErrorKind, MeshError
from scripts.run_local import is_ready
from tests.chaos.proxy import Proxy
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.direct import direct_client
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.helpers import Served

SEARCH = {"query": "AI", "streaming": "true"}


async def status_of(client: httpx.AsyncClient, path: str) -> int:
    return (await client.get(path)).status_code


async def until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(10):
        while await status_of(client, "/readyz") != 200:
            await asyncio.sleep(0.02)


async def test_readyz_follows_the_orchestrators_health(
    client: httpx.AsyncClient, upstream: Served
) -> None:
    """/readyz and /health are 200 only while it reports SERVING; /livez is always 200."""
    for ready in (True, False, True):
        await upstream.server.set_ready(ready)
        expected = 200 if ready else 503
        async with asyncio.timeout(10):
            while await status_of(client, "/readyz") != expected:
                await asyncio.sleep(0.05)
        assert await status_of(client, "/health") == expected
        assert await status_of(client, "/livez") == 200


async def test_readiness_needs_no_round_trip(start_gateway: StartGateway, upstream: Served) -> None:
    """An orchestrator on a busy node answers late: the gateway stays in service."""
    await upstream.server.set_ready(True)
    async with Proxy().running() as proxy:
        proxy.target = upstream.address
        async with (
            start_gateway(orchestrator_host=proxy.address) as server,
            client_of(server) as client,
        ):
            await until_ready(client)
            proxy.silent = True
            for _ in range(20):
                began = time.monotonic()
                assert await status_of(client, "/readyz") == 200
                assert time.monotonic() - began < 0.9
            proxy.silent = False


async def test_readyz_says_why_engines_are_refused(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, upstream: Served
) -> None:
    """The orchestrator's first problem follows the reason."""
    orchestrator.problems = ["an engine has another vocabulary", "another problem"]
    await upstream.server.set_ready(False)
    async with asyncio.timeout(10):
        expected = "the orchestrator cannot produce tokens: an engine has another vocabulary"
        while (response := await client.get("/readyz")).text != f"not ready: {expected}\n":
            await asyncio.sleep(0.05)
    assert response.status_code == 503


async def test_readyz_says_which_engines_are_refused_while_ready(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    upstream: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line for each problem follows, and goes when the engines agree."""
    monkeypatch.setattr(readiness, "PROBLEMS_SECONDS", 0.0)
    await upstream.server.set_ready(True)
    first, second = "an engine has other weights", "an engine has another vocabulary"
    for problems in ([first, second], []):
        orchestrator.problems = problems
        expected = "".join(["ready\n", *(f"refused: {problem}\n" for problem in problems)])
        async with asyncio.timeout(10):
            while (response := await client.get("/readyz")).text != expected:
                await asyncio.sleep(0.05)
        assert response.status_code == 200


async def test_not_ready_without_an_orchestrator(start_gateway: StartGateway) -> None:
    """Without an orchestrator the gateway is alive, not ready, and answers searches with 503."""
    nowhere = start_gateway(orchestrator_host="127.0.0.1:1", hold_seconds=0.1)
    async with nowhere as server, client_of(server) as client:
        ready = await client.get("/readyz")
        search = await client.get("/api/v1/search", params=SEARCH)
        alive = await status_of(client, "/livez")
    error = search.json()["error"]
    assert ready.status_code == 503
    assert ready.text == "not ready: the orchestrator cannot produce tokens\n"
    assert search.status_code == 503
    assert search.headers["retry-after"] == "1"
    assert error["message"] == "no orchestrator is ready"
    assert alive == 200


async def test_a_gateway_is_recognised_by_its_instance_id(
    start_gateway: StartGateway, upstream: Served
) -> None:
    """`make run-local` does not take another gateway at the address for its own."""
    await upstream.server.set_ready(True)
    async with start_gateway(instance_id="ours") as server, client_of(server) as client:
        await until_ready(client)
        for path in ("/livez", "/readyz"):
            assert (await client.get(path)).headers["x-instance-id"] == "ours"
        address = f"127.0.0.1:{server.port}"
        assert await asyncio.to_thread(is_ready, address, "ours")
        assert not await asyncio.to_thread(is_ready, address, "other")
    async with start_gateway() as server, client_of(server) as client:
        await until_ready(client)
        response = await client.get("/readyz")
        assert (response.status_code, "x-instance-id" in response.headers) == (200, False)
        assert not await asyncio.to_thread(is_ready, f"127.0.0.1:{server.port}", "ours")
    assert not await asyncio.to_thread(is_ready, address, "ours")


async def test_request_and_trace_ids_are_propagated(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The client's request id and trace id are passed upstream and returned in headers."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "mine-1", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    response = await client.get("/api/v1/search", params=SEARCH, headers=headers)
    [context] = orchestrator.contexts
    assert response.headers["x-request-id"] == context.request_id == "mine-1"
    assert response.headers["x-trace-id"] == orchestrator.trace_ids[0] == trace_id
    remaining = context.remaining()
    assert remaining is not None
    assert 290 < remaining <= 300


async def test_a_large_body_is_413_over_a_real_connection(client: httpx.AsyncClient) -> None:
    """The client can read the 413 although it has sent only a part of the body."""
    response = await client.post("/v1/completions", content=b"x" * 5_000_000)
    assert response.status_code == 413
    assert await status_of(client, "/livez") == 200


@pytest.mark.parametrize("path", ["//[", "/%00", "/%ff", "/v1/models/%2e%2e/%2e%2e"])
async def test_odd_paths_are_not_found(client: httpx.AsyncClient, path: str) -> None:
    """Paths that are not valid in a URL are a 404 with an error body."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'{"error":{"message":' in answer


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "né"])
async def test_an_invalid_request_id_is_replaced(given: str) -> None:
    """A request id that is empty, too long or has other characters is not propagated."""
    async with direct_client() as client:
        response = await client.get("/livez", headers={"x-request-id": given.encode()})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize(
    "path",
    [
        "/livez",
        "/readyz",
        "/health",
        "/metrics",
        "/openapi.json",
        "/",
        "/search.js",
        "/no",
        "/v1/models",
    ],
)
async def test_every_response_has_ids(path: str) -> None:
    """Errors, probes and static files included."""
    async with direct_client() as client:
        response = await client.get(path)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-trace-id"])


async def test_the_api_requires_a_configured_key() -> None:
    """API routes require a key; probes, metrics, OpenAPI and the page do not."""
    async with direct_client(api_keys="one, two") as client:
        for path in ("/v1/models", "/api/v1/search?query=x", "/v1/models/fake", "/v1/no"):
            missing = await client.get(path)
            wrong = await client.get(path, headers={"authorization": "Bearer three"})
            odd = await client.get(path, headers={"authorization": "Basic one"})
            assert [r.status_code for r in (missing, wrong, odd)] == [401] * 3
            assert missing.headers["www-authenticate"] == "Bearer"
            assert wrong.json()["error"]["type"] == "authentication_error"
        for key in ("one", "two"):
            headers = {"authorization": f"bearer {key}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        for path in ("/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/"):
            assert await status_of(client, path) == 200
        document = (await client.get("/openapi.json")).json()
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}, {"header": []}]
    assert "security" not in document["paths"]["/livez"]["get"]


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_metrics_count_each_request_once(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A request is one count and one duration; a stream also one time to first token."""
    route = "/api/v1/search"
    asked = {
        "gen_ai_operation_name": "search",
        "gen_ai_provider_name": "weir",
        "gen_ai_response_model": "fake",
    }

    def read() -> tuple[float, ...]:
        return (
            sample("gateway_http_requests_total", route=route, method="GET", status="200"),
            sample("gateway_http_requests_total", route=route, method="GET", status="429"),
            sample("gateway_http_request_duration_seconds_count", route=route, method="GET"),
            sample("gen_ai_server_time_to_first_token_seconds_count", **asked),
            sample("gen_ai_server_time_to_first_token_seconds_sum", **asked),
            sample("gateway_errors_total", kind="overloaded"),
        )

    before = read()
    orchestrator.script = Script(seconds_before_delta=0.1)
    await client.get(route, params=SEARCH)
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "full"))
    await client.get(route, params=SEARCH)
    ok, full, durations, firsts, seconds, errors = (
        after - earlier for earlier, after in zip(before, read(), strict=True)
    )
    assert (ok, full, durations, firsts, errors) == (1, 1, 2, 1, 1)
    assert 0.1 <= seconds < 2


async def test_metrics_come_in_both_formats() -> None:
    """/metrics serves the Prometheus text format or, by Accept, OpenMetrics."""
    openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
    async with direct_client() as client:
        await client.get("/no/such/path")
        plain = await client.get("/metrics")
        open_ = await client.get("/metrics", headers=openmetrics)
    assert plain.headers["content-type"].startswith("text/plain")
    assert open_.headers["content-type"].startswith("application/openmetrics-text")
    assert open_.text.endswith("# EOF\n")
    assert 'route="unmatched"' in plain.text
    assert "no/such" not in plain.text
    assert "gateway_num_streams_active 0.0" in plain.text


async def test_one_access_log_line_per_request(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It has status, tokens, TTFT and finish reason but not the query; probes are not logged."""
    caplog.set_level(logging.INFO)
    await client.get("/api/v1/search", params=SEARCH)
    await client.get("/livez")
    await client.get("/readyz")
    await client.get("/health")
    [line] = [vars(record) for record in caplog.records if record.name == "gateway.access"]
    assert line["msg"] == "request finished"
    assert (line["method"], line["route"], line["status"]) == ("GET", "/api/v1/search", 200)
    assert (line["finish_reason"], line["completion_tokens"]) == ("stop", 3)
    assert 0 < line["ttft_seconds"] <= line["duration_seconds"]
    assert not any("AI" in str(value) for value in line.values())


async def test_openapi_lists_all_routes_and_schemas() -> None:
    """Every route is listed, every reference resolves, bounds are those of the schemas."""
    async with direct_client() as client:
        document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert document["openapi"] == "3.1.0"
    assert references <= set(schemas)
    assert set(document["paths"]) == {
        "/api/v1/search",
        "/api/v1/examples",
        "/api/v1/search/{stream}",
        "/api/v1/validate",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/responses",
        "/v1/responses/{id}",
        "/v1/responses/{id}/cancel",
        "/v1/responses/{id}/input_items",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/v1/score",
        "/score",
        "/tokenize",
        "/detokenize",
        "/livez",
        "/readyz",
        "/health",
        "/metrics",
    }
    assert set(document["paths"]["/api/v1/search"]) == {"get", "post"}
    assert set(document["paths"]["/v1/responses/{id}"]) == {"get", "delete"}
    query = document["paths"]["/api/v1/search"]["get"]["parameters"][0]
    assert (query["name"], query["required"]) == ("query", True)
    assert query["schema"]["maxLength"] == 500
    assert schemas["ChatCompletionRequest"]["required"] == ["messages"]
    stop = schemas["ChatCompletionRequest"]["properties"]["stop"]
    assert {"type": "string"} in stop["anyOf"]


class Page(HTMLParser):
    """Links, element ids and labels of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.labels: set[str] = set()
        self.trace_url: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = {name: value or "" for name, value in attrs}
        self.links += [fields[name] for name in ("src", "href") if name in fields]
        self.ids.add(fields.get("id", ""))
        if tag == "label":
            self.labels.add(fields["for"])
        if fields.get("name") == "weir-trace-url":
            self.trace_url = fields["content"]


async def test_the_page_loads_only_from_the_gateway() -> None:
    """The gateway serves all its files, CSP allows no other origin, and inputs have labels."""
    template = 'https://grafana.example/trace?id={trace_id}&x="<y>'
    async with direct_client(trace_url_template=template) as client:
        response = await client.get("/")
        page = Page(response.text)
        parts = [await client.get(link) for link in page.links if not link.startswith("data:")]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert [part.status_code for part in parts] == [200] * len(parts)
    assert page.labels <= page.ids
    assert page.trace_url == template
    scripts = "".join(path.read_text() for path in sorted(FOLDER.glob("*.js")))
    assert "innerHTML" not in scripts
    used = set(re.findall(r'(?:getElementById|find)\("([\w-]+)"\)', scripts))
    assert {"query", "conversation", "turn"} <= used <= page.ids
    imported = set(re.findall(r'from "/([\w.]+)"', scripts))
    assert imported | {"search.js", "search.css"} == set(STATIC_FILES)
