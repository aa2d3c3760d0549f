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


async def test_the_gateways_own_page_is_allowed() -> None:
    """An Origin equal to the Host is allowed with http and https, for TLS-terminating proxies."""
    async with direct_client() as client:
        for origin in ("http://localhost", "https://localhost"):
            answer = await client.get("/v1/models", headers={"origin": origin})
            assert answer.status_code == 200


@pytest.mark.parametrize("origins", ["https://App.example/, https://b.example", "*"])
async def test_configured_origins_are_allowed(origins: str) -> None:
    """A preflight needs no key; errors have CORS headers too."""
    origin = "https://app.example"
    async with direct_client(cors_origins=origins, api_keys="k") as client:
        preflight = await client.options(
            "/v1/completions", headers={"origin": origin, "access-control-request-method": "POST"}
        )
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
    assert "authorization" in preflight.headers["access-control-allow-headers"]
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
    assert added == {"x-request-id", "x-trace-id", "x-ignored-fields"}
    assert {*added, "retry-after"} <= set(exposed)
