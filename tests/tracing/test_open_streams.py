"""Thousands of streams that are open at once, and collectors that do not answer."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import httpx
import pytest

from mesh.observability.telemetry import SHUTDOWN_LIMIT_S
from tests.e2e.support.tracing.collector import Collector, running_collector
from tests.tracing.conftest import (
    COMPLETIONS,
    SHORT_TIMEOUT,
    body,
    fake_stack,
    num_running,
    root,
    whole_trace,
)

pytestmark = pytest.mark.timeout(600)

NUM_OPEN, NUM_FAILED = 2000, 20
TOKENS_PER_SECOND = 0.5
OPEN = {"INFERENCE_FAKE_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND)}
"""The streams are open, and leave the processor to their traces."""

NUM_REQUESTS = 50


async def test_thousands_of_open_streams(tmp_path: Path, client: httpx.AsyncClient) -> None:
    """The traces of those that fail are whole although all others are open at that time."""
    with running_collector() as collector, fake_stack(tmp_path, collector, OPEN) as stack:

        def send(url: str) -> asyncio.Task[httpx.Response]:
            wanted = client.post(f"{url}{COMPLETIONS}", json=body(250, TOKENS_PER_SECOND))
            return asyncio.create_task(wanted)

        streams = [send(stack.url) for _ in range(NUM_OPEN)]
        while sum(await num_running(client, stack)) < NUM_OPEN:
            assert not any(task.done() for task in streams)
            await asyncio.sleep(0.2)
        short = f"http://{stack.addresses[SHORT_TIMEOUT]}"
        responses = await asyncio.gather(*(send(short) for _ in range(NUM_FAILED)))
        for response in responses:
            assert response.status_code == 504
            assert root(await whole_trace(collector, response)).outcome == "deadline"
        assert not any(task.done() for task in streams)
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


@pytest.mark.parametrize("answers", [True, False])
async def test_a_collector_that_does_not_answer(
    tmp_path: Path, client: httpx.AsyncClient, answers: bool
) -> None:
    """One that is not there, or that accepts connections and is silent: no request notices."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = silent.getsockname()
        if not answers:
            silent.close()
        collector = Collector(f"http://{address[0]}:{address[1]}")
        speed = {"INFERENCE_FAKE_TOKENS_PER_SECOND": "1000"}
        with fake_stack(tmp_path, collector, speed) as stack:
            headers = {"x-weir-trace": "1"}
            for _ in range(NUM_REQUESTS):
                response = await client.post(
                    f"{stack.url}{COMPLETIONS}", json=body(0.01, 1000), headers=headers
                )
                assert response.status_code == 200
            began = time.monotonic()
            codes = await asyncio.to_thread(stack.stop)
            took = time.monotonic() - began
            logs = " ".join(stack.log(name).read_text() for name in stack.processes)
    assert set(codes.values()) == {0}
    assert took < SHUTDOWN_LIMIT_S * len(codes) + 60
    assert "Traceback" not in logs
