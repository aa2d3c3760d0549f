"""Checks of Host and Origin: DNS rebinding, cross-origin requests and CORS."""

from __future__ import annotations

import pytest

from tests.gateway.direct import direct_client


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "localhost", 200),
        ({}, "localhost:8080", 200),
        ({}, "LOCALHOST", 200),
        ({}, "127.0.0.1:1", 200),
        ({}, "[::1]:8080", 200),
        ({}, "evil.example", 421),
        ({}, "localhost.evil.example", 421),
        ({}, "localhost@evil.example", 421),
        ({}, "evil.example:bad", 421),
        ({}, "", 421),
        ({}, "[", 421),
        ({}, "localhost/x", 421),
        *[
            ({"listen": "0.0.0.0:1", "allow_anonymous": True}, host, 200)
            for host in (
                *("gateway", "10.0.0.7:8080", "[fd00::1]", "localhost", "x.localhost"),
                *("weir.default.svc", "weir.default.svc.cluster.local", "host.docker.internal:80"),
            )
        ],
        *[
            ({"listen": "[::]:1", "allow_anonymous": True}, host, 421)
            for host in ("evil.example", "1.2.3.4.evil.example", "x.svc.evil.example", "", "[x]")
        ],
        ({"listen": "[::]:1", "api_keys": "k"}, "public.example", 200),
        ({"listen": "[::]:1", "allow_anonymous": True, "allowed_hosts": "*"}, "a.example", 200),
        ({"allowed_hosts": "internal, a.example"}, "10.0.0.7", 200),
        ({"allowed_hosts": "internal, a.example"}, "a.example", 200),
        ({"allowed_hosts": "internal, a.example"}, "b.example", 421),
        ({"allowed_hosts": "a.example, *.b.example"}, "a.example:80", 200),
        ({"allowed_hosts": "a.example, *.b.example"}, "x.b.example", 200),
        ({"allowed_hosts": "a.example, *.b.example"}, "b.example", 421),
        ({"allowed_hosts": "a.example, *.b.example"}, "xb.example", 421),
        ({"allowed_hosts": "a.example, *.b.example"}, "localhost", 421),
    ],
)
async def test_unknown_hosts_are_rejected(
    settings: dict[str, object], host: str, status: int
) -> None:
    """Against DNS rebinding only localhost is allowed on loopback, and internal names without keys.

    Probes accept any host.
    """
    async with direct_client(**settings) as client:
        headers = {"host": host, "authorization": "Bearer k"}
        assert (await client.get("/v1/models", headers=headers)).status_code == status
        assert (await client.get("/livez", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000"])
async def test_other_origins_are_rejected(origin: str) -> None:
    """A foreign Origin is a 403, for a preflight and for a request without one."""
    async with direct_client() as client:
        answer = await client.post("/v1/completions", json={}, headers={"origin": origin})
        preflight = await client.options(
            "/v1/completions",
            headers={"origin": origin, "access-control-request-method": "POST"},
        )
    assert answer.status_code == preflight.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


SEARCH = "/api/v1/search?query=x"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site "])
@pytest.mark.parametrize("destination", ["image", "script", "empty", "iframe", "document", ""])
async def test_requests_of_foreign_pages_without_an_origin_are_rejected(
    site: str, destination: str
) -> None:
    """`<img>`, `<script>`, no-cors fetch, frames and navigation have fetch metadata only."""
    headers = {"sec-fetch-site": site, "sec-fetch-dest": destination}
    async with direct_client() as client:
        search = await client.get(SEARCH, headers=headers)
        completion = await client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert search.status_code == completion.status_code == 403
    error = search.json()["error"]
    assert error["code"] == "origin_not_allowed"
    assert "GATEWAY_CORS_ORIGINS" in error["message"]
    assert repr(site.strip().lower()) in error["message"]


@pytest.mark.parametrize("site", ["same-origin", "none", ""])
async def test_own_pages_and_typed_addresses_are_allowed(site: str) -> None:
    """`same-origin` is the gateway's own page, `none` the user; older browsers send nothing."""
    headers = {"sec-fetch-site": site} if site else {}
    async with direct_client() as client:
        assert (await client.get(SEARCH, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("path", "destination", "status"),
    [
        ("/", "document", 200),
        ("/", "iframe", 403),
        ("/", "empty", 403),
        ("/search.js", "script", 403),
    ],
)
async def test_links_to_the_search_page_work(path: str, destination: str, status: int) -> None:
    """A link on another site may open the page, which may not be embedded."""
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-dest": destination}
    async with direct_client() as client:
        assert (await client.get(path, headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ("*", None, 200),
        ("https://app.example", None, 403),
        ("https://app.example", "https://app.example", 200),
        ("https://app.example", "https://evil.example", 403),
    ],
)
async def test_fetch_metadata_respects_allowed_origins(
    origins: str, origin: str | None, status: int
) -> None:
    """Without an origin only `*` allows a foreign page; with one, the origin decides."""
    headers = {"sec-fetch-site": "cross-site"} | ({"origin": origin} if origin else {})
    async with direct_client(cors_origins=origins) as client:
        assert (await client.get(SEARCH, headers=headers)).status_code == status


async def test_the_gateways_own_page_is_allowed() -> None:
    """An Origin equal to the Host is allowed with http and https, for TLS-terminating proxies."""
    async with direct_client() as client:
        for origin in ("http://localhost", "https://localhost"):
            answer = await client.get("/v1/models", headers={"origin": origin})
            assert answer.status_code == 200


ASKED = "authorization,content-type,x-stainless-retry-count,x-stainless-timeout"
PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": ASKED,
}


@pytest.mark.parametrize("asked", ["", "bad header", "a,,b", "a, b\x7f", "é"])
async def test_a_preflight_for_no_valid_headers_allows_none(asked: str) -> None:
    """Only a list of header names is copied into the response."""
    headers = {**PREFLIGHT, "access-control-request-headers": asked.encode("latin-1")}
    async with direct_client(cors_origins="*") as client:
        response = await client.options("/v1/completions", headers=headers)
    assert response.status_code == 204
    assert "access-control-allow-headers" not in response.headers


@pytest.mark.parametrize("origins", ["https://App.example/, https://b.example", "*"])
async def test_configured_origins_are_allowed(origins: str) -> None:
    """A preflight needs no key; errors have CORS headers too."""
    origin = "https://app.example"
    async with direct_client(cors_origins=origins, api_keys="k") as client:
        preflight = await client.options("/v1/completions", headers=PREFLIGHT)
        refused = await client.get("/v1/models", headers={"origin": origin})
        served = await client.get(
            "/v1/models", headers={"origin": origin, "authorization": "Bearer k"}
        )
    assert [each.status_code for each in (preflight, refused, served)] == [204, 401, 200]
    allowed = "*" if origins == "*" else origin
    for each in (preflight, refused, served):
        assert each.headers["access-control-allow-origin"] == allowed
        assert each.headers["vary"] == "origin"
        assert "access-control-allow-credentials" not in each.headers
    assert preflight.headers["access-control-allow-headers"] == ASKED
    assert "x-request-id" in served.headers["access-control-expose-headers"]


async def test_cors_exposes_the_gateways_response_headers() -> None:
    """CORS exposes every header that the gateway adds, the list of ignored fields included."""
    origin = "https://app.example"
    async with direct_client(cors_origins=origin) as client:
        response = await client.post(
            "/v1/completions", json={"prompt": "x", "unknown": 1}, headers={"origin": origin}
        )
    exposed = response.headers["access-control-expose-headers"].split(", ")
    added = {name for name in response.headers if name.startswith("x-")}
    assert added == {"x-request-id", "x-trace-id", "x-trace-sampled", "x-ignored-fields"}
    assert {*added, "retry-after"} <= set(exposed)
