"""Offers to upgrade the protocol, which are declined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest

from gateway.http.server import GatewayServer
from tests.gateway.connection.raw import chunked, exchange, post
from tests.gateway.fakes import FakeOrchestrator

PATH = "/v1/completions"
BODY = json.dumps({"prompt": "Hi", "max_tokens": 3}).encode()
OFFERS = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA"),
    "websocket": ("Connection: keep-alive, Upgrade", "Upgrade: websocket"),
    "TLS": ("Upgrade: TLS/1.2, HTTP/1.1", "Connection: Upgrade"),
}

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_offered_upgrade_keeps_the_body(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, framing: str
) -> None:
    """The request is served by HTTP/1.1, however it is cut, and so is the next one."""
    for offer in OFFERS.values():
        await _check_offer(gateway, offer, framing)
    prompts = [each.text for each in orchestrator.requests]  # type: ignore[attr-defined]
    assert prompts == ["Hi"] * 8 * len(OFFERS)


async def _check_offer(gateway: GatewayServer, offer: Sequence[str], framing: str) -> None:
    if framing == "length":
        request = post(PATH, BODY, *offer, f"content-length: {len(BODY)}")
    else:
        body = chunked(BODY, 5) + b"0\r\n\r\n"
        request = post(PATH, body, *offer, "transfer-encoding: chunked")
    last = post(PATH, BODY, "connection: close", f"content-length: {len(BODY)}")
    head_end = request.index(b"\r\n\r\n") + 4
    for cuts in ([], [head_end], [head_end - 2, head_end + 3], [9]):
        places = [0, *cuts, len(request)]
        pieces = [request[a:b] for a, b in pairwise(places)]
        got = await exchange(gateway, *pieces, last, pause=0.005 if cuts else 0)
        assert got.count(b"HTTP/1.1 200 ") == 2


async def test_an_upgrade_does_not_hide_a_second_host(gateway: GatewayServer) -> None:
    """The checks of the head apply to a request with an offer as well."""
    got = await exchange(gateway, post(PATH, BODY, *OFFERS["h2c"], "host: b"))
    assert got.startswith(b"HTTP/1.1 400 ")
    http10 = post(PATH, BODY, *OFFERS["h2c"], f"content-length: {len(BODY)}")
    got = await exchange(gateway, http10.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert got.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in got


async def test_http2_without_an_offer_is_refused(gateway: GatewayServer) -> None:
    """The preface of HTTP/2 with prior knowledge is a 400."""
    got = await exchange(gateway, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400 ")
