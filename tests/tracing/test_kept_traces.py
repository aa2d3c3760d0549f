"""Under the default sampling every trace that matters is exported, and is complete.

REQUESTS sets the number of requests at once (200); a tenth of them fails, five fail over, five are
slow.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.support.stack import Stack
from tests.e2e.support.tracing.collector import GRPC, HTTP, Collector, running_collector
from tests.tracing.conftest import (
    COMPLETIONS,
    SHORT_TIMEOUT,
    body,
    fake_stack,
    is_whole,
    num_running,
    root,
    whole_trace,
)

pytestmark = pytest.mark.timeout(400)

TOKENS_PER_SECOND = 50
SLOW_SECONDS = 3.0
NUM_REQUESTS = int(os.environ.get("REQUESTS", "200"))
NUM_FAILED = NUM_REQUESTS // 10
NUM_SLOW = NUM_FAILED_OVER = 5
NUM_OK = NUM_REQUESTS - NUM_FAILED - NUM_SLOW - NUM_FAILED_OVER
ENGINES = ("inference", "inference-2")

SETTINGS = {
    "INFERENCE_FAKE_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND),
    "ORCHESTRATOR_ROUTING_POLICY": "round_robin",
    "GATEWAY_SLOW_REQUEST_SECONDS": str(SLOW_SECONDS),
}


@pytest.fixture(scope="module", params=[GRPC, HTTP])
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    with running_collector(request.param) as collector:
        yield collector


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    """Two engines, and a gateway with a short time limit beside the usual one."""
    with fake_stack(tmp_path_factory.mktemp("kept"), collector, SETTINGS, ENGINES) as stack:
        yield stack


async def wait_engines(client: httpx.AsyncClient, stack: Stack) -> None:
    """Wait until the orchestrator has both engines."""
    url = f"http://{stack.metrics['orchestrator']}/metrics"
    async with asyncio.timeout(120):
        while "orchestrator_replicas_ready 2.0" not in (await client.get(url)).text:
            await asyncio.sleep(0.1)


async def test_the_traces_that_matter_among_many(
    stack: Stack, collector: Collector, client: httpx.AsyncClient
) -> None:
    """At once: those that fail, fail over or are slow have whole traces, of the rest a few."""

    def send(url: str, seconds: float) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(
            client.post(f"{url}{COMPLETIONS}", json=body(seconds, TOKENS_PER_SECOND))
        )

    await wait_engines(client, stack)
    long = [send(stack.url, 2 * SLOW_SECONDS) for _ in range(NUM_SLOW + NUM_FAILED_OVER)]
    while sum(running := await num_running(client, stack, ENGINES)) < len(long):
        assert not any(task.done() for task in long)
    assert running == [NUM_SLOW, NUM_FAILED_OVER], "they were assigned in turn"
    stack.processes["inference-2"].kill()
    began = time.monotonic()
    failed = [send(f"http://{stack.addresses[SHORT_TIMEOUT]}", 30) for _ in range(NUM_FAILED)]
    # Their traces are whole only if they reach an engine before their deadline.
    num_reached = len(long) + NUM_FAILED
    while sum(await num_running(client, stack, ENGINES[:1])) < num_reached:
        assert not any(task.done() for task in failed), "they did not reach the engine in time"
    others = [send(stack.url, 0.1) for _ in range(NUM_OK)]
    responses = await asyncio.gather(*long, *failed, *others)
    took = time.monotonic() - began

    num_long = len(long)
    assert {response.status_code for response in responses[:num_long]} == {200}
    roots = [root(await whole_trace(collector, each)) for each in responses[:num_long]]
    outcomes = sorted(span.outcome for span in roots)
    assert outcomes == ["failed_over"] * NUM_FAILED_OVER + ["ok"] * NUM_SLOW
    for span in roots:
        assert span.seconds >= SLOW_SECONDS
        assert span.attributes.get("weir.num_failovers", 0) == (span.outcome == "failed_over")
    for response in responses[num_long : num_long + NUM_FAILED]:
        assert response.status_code == 504
        assert root(await whole_trace(collector, response)).outcome == "deadline"
    check_rest(collector, responses[num_long + NUM_FAILED :], took)


def check_rest(collector: Collector, rest: list[httpx.Response], took: float) -> None:
    """Ordinary requests are exported at the set rate; their headers say which are.

    Requests that take long on a busy machine count as slow as well.
    """
    assert {response.status_code for response in rest} == {200}
    ordinary = [each for each in rest if each.elapsed.total_seconds() < SLOW_SECONDS / 2]
    said = [each for each in ordinary if each.headers["x-trace-sampled"] == "true"]
    assert len(said) <= 10 + took + 2, "a burst, and one a second"
    for response in said:
        collector.wait(response.headers["x-trace-id"], is_whole)
    exported = {span.trace_id for span in collector.spans()}
    for response in ordinary:
        sampled = response.headers["x-trace-sampled"] == "true"
        assert sampled == (response.headers["x-trace-id"] in exported)


async def test_a_requested_trace_is_exported(
    stack: Stack, collector: Collector, client: httpx.AsyncClient
) -> None:
    """By header, whatever the rate."""
    for _ in range(15):
        headers = {"x-weir-trace": "1"}
        url = f"{stack.url}{COMPLETIONS}"
        response = await client.post(url, json=body(0.1, TOKENS_PER_SECOND), headers=headers)
        assert response.headers["x-trace-sampled"] == "true"
        await whole_trace(collector, response)
