"""curl as a client."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from gateway.http.server import GatewayServer
from tests.gateway.fakes import FakeOrchestrator

pytestmark = [
    pytest.mark.timeout(30),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


async def curl(server: GatewayServer, path: str, *options: str) -> bytes:
    """Standard output of curl."""
    url = f"http://localhost:{server.port}{path}"
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--include", "--noproxy", "*", *options, url,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


@pytest.mark.parametrize("version", ["--http2", "--http1.1", "--http1.0"])
async def test_curl_completes_and_streams(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, version: str
) -> None:
    """With `--http2` curl offers an upgrade to h2c, also for a POST."""
    body = json.dumps({"prompt": "Hi"})
    got = await curl(gateway, "/v1/completions", version, "--json", body)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == "Hello world"
    [request] = orchestrator.requests
    assert request.text == "Hi"  # type: ignore[attr-defined]
    search = "/api/v1/search?query=x&streaming=true"
    stream = await curl(gateway, search, version)
    assert stream.partition(b"\r\n\r\n")[2].startswith(b"event: search_results\n")
    assert b"event: complete\n" in stream
