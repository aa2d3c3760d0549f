"""Random raw requests: the gateway stays fast, answers with valid HTTP, and leaks nothing.

SEED and DURATION (seconds) come from the environment; `make fuzz-http` sets them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import httpx
import pytest

from tests.e2e.support.stack import ROOT
from tests.helpers import eventually
from tests.wire.conftest import GatewayProcess

SEED = int(os.environ.get("SEED") or 1)
SECONDS = float(os.environ.get("DURATION") or 5)

MAX_LIVEZ_SECONDS = 0.1
"""Bound of the largest latency, less the time in which no CPU was free for gateway or prober."""
MAX_BUSY_LIVEZ_SECONDS = 2.0
"""Bound of the largest latency, whatever else the machine does."""

MAX_GROWTH_BYTES = 64 * 2**20

pytestmark = pytest.mark.timeout(SECONDS + 120)


async def run(module: str, *arguments: object) -> dict[str, Any]:
    """Run a module of this folder; return the JSON object that it prints."""
    command = [sys.executable, "-m", f"tests.wire.{module}", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, module
    result: dict[str, Any] = json.loads(output)
    return result


async def test_raw_requests_do_not_slow_down_others(gateway_process: GatewayProcess) -> None:
    """`/livez` answers in time throughout, and no connection or request is left."""
    gateway = gateway_process
    await run("fuzzer", gateway.port, SEED + 1, 1)  # the first requests allocate caches
    memory = gateway.process.memory_info().rss
    fuzzed, probed = await asyncio.gather(
        run("fuzzer", gateway.port, SEED, SECONDS),
        run("prober", gateway.port, gateway.process.pid, SECONDS),
    )
    growth = gateway.process.memory_info().rss - memory
    print(f"\n{json.dumps(fuzzed)}\n{json.dumps(probed)}\nmemory grew by {growth / 2**20:.1f} MiB")
    assert fuzzed["problems"] == []
    assert {"200", "400", "431"} <= set(fuzzed["statuses"])
    assert probed["max_own"] < MAX_LIVEZ_SECONDS
    assert probed["max"] < MAX_BUSY_LIVEZ_SECONDS
    assert growth < MAX_GROWTH_BYTES
    await eventually(lambda: gateway.num_connections == 0, "all connections are closed", 10)
    await eventually(lambda: gateway.orchestrator.num_running == 0, "no call runs upstream", 10)
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{gateway.url}/metrics")).text
    assert "\ngateway_num_requests_running 0.0\n" in text
    log = gateway.log.read_text()
    assert "Traceback" not in log
    assert "unexpected error" not in log
