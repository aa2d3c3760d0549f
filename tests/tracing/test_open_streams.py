"""The memory of the spans that are held for open streams. STREAMS sets their number (2,000)."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.sse_load import Connection, completion_request, connect
from tests.e2e.support.stack import Stack
from tests.e2e.support.tracing.collector import Collector, running_collector
from tests.tracing.conftest import LONG_PROMPT, fake_stack, num_running

pytestmark = pytest.mark.timeout(600)

NUM_STREAMS = int(os.environ.get("STREAMS", "2000"))
NUM_TOKENS = 200
OPENING = 50
"""Streams that are opened at once."""
MAX_BYTES_EACH = 16e3
"""Most memory that tracing adds to a service for a stream: its spans, open and held."""

TRACED = ("gateway", "orchestrator", "inference")
SLOW = {"INFERENCE_FAKE_TOKENS_PER_SECOND": "0.1", "GATEWAY_REQUEST_TIMEOUT_SECONDS": "3600"}


def memory(stack: Stack) -> dict[str, int]:
    """Resident bytes of each traced service."""
    found = {}
    for name in TRACED:
        status = Path(f"/proc/{stack.processes[name].pid}/status").read_text()
        [kilobytes] = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        found[name] = int(kilobytes) * 1024
    return found


@asynccontextmanager
async def open_streams(stack: Stack, number: int) -> AsyncIterator[None]:
    """Streams that have been accepted and last for many minutes."""
    request = completion_request(stack.url, NUM_TOKENS, LONG_PROMPT)
    with ExitStack() as held:
        connections: list[Connection] = []
        reads: list[asyncio.Task[object]] = []
        while len(connections) < number:
            opened = await asyncio.gather(*(connect(stack.url) for _ in range(OPENING)))
            for connection in opened:
                held.callback(connection.transport.close)
                reads.append(asyncio.create_task(connection.read(request, NUM_TOKENS)))
            while not all(connection.accepted for connection in opened):
                assert not any(read.done() for read in reads)
                await asyncio.sleep(0.05)
            connections += opened
        yield
        assert not any(read.done() for read in reads), "a stream has ended"
    await asyncio.gather(*reads)


async def wait_running(client: httpx.AsyncClient, stack: Stack, number: int) -> None:
    """Wait until the engine runs this many streams."""
    async with asyncio.timeout(60):
        while await num_running(client, stack) != [number]:
            await asyncio.sleep(0.1)


async def measure(
    folder: Path, client: httpx.AsyncClient, collector: Collector, settings: Mapping[str, str]
) -> dict[str, int]:
    """Bytes that the streams add to each service."""
    folder.mkdir()
    with fake_stack(folder, collector, {**SLOW, **settings}) as stack:
        async with open_streams(stack, OPENING):
            pass  # the first streams import and allocate what all of them use
        before = memory(stack)
        async with open_streams(stack, NUM_STREAMS):
            await wait_running(client, stack, NUM_STREAMS)
            after = memory(stack)
        await wait_running(client, stack, 0)
    return {name: after[name] - before[name] for name in TRACED}


async def test_the_spans_of_open_streams_have_a_bound(
    tmp_path: Path, client: httpx.AsyncClient
) -> None:
    """Beside the same streams without tracing; no stream ends early, and all leave the engine."""
    with running_collector() as collector:
        without = await measure(
            tmp_path / "off", client, collector, {"OTEL_TRACES_EXPORTER": "none"}
        )
        traced = await measure(tmp_path / "on", client, collector, {})
    added = {name: traced[name] - without[name] for name in TRACED}
    print({name: (without[name] // 1024, added[name] // 1024) for name in TRACED}, "KiB")
    assert max(added.values()) < MAX_BYTES_EACH * NUM_STREAMS, added
