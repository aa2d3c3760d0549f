"""Under the default sampling every trace that matters is exported, and is complete."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.support.stack import SERVICES, Stack, free_ports
from tests.e2e.support.tracing.collector import Collector, Span, running_collector

pytestmark = pytest.mark.timeout(240)

COMPLETIONS = "/v1/completions"

TOKENS_PER_SECOND = 50
SLOW_SECONDS = 4.0
NUM_OK, NUM_FAILED, NUM_SLOW = 175, 20, 5

SETTINGS = {
    "OTEL_BSP_SCHEDULE_DELAY": "200",
    "INFERENCE_FAKE_MODEL": "true",
    "INFERENCE_FAKE_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND),
    "INFERENCE_MAX_NUM_SEQS": "256",
    "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": "512",
    "GATEWAY_SLOW_REQUEST_SECONDS": str(SLOW_SECONDS),
}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    """Two engines, and a gateway with a short time limit beside the usual one."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **SETTINGS}
    stack = Stack(tmp_path_factory.mktemp("kept"), None, settings)
    engine, metrics, gateway = (f"127.0.0.1:{port}" for port in free_ports(3))
    stack.addresses |= {"inference-2": engine, "short-timeout": gateway}
    stack.metrics["inference-2"] = metrics
    stack._environment["INFERENCE_HOST"] += f",{engine}"
    try:
        stack.start()
        stack.start_as("inference-2", "inference")
        stack.start_as("short-timeout", "gateway", "--request-timeout-seconds", "2")
        stack.wait_ready()
        stack.wait_ready(url=f"http://{gateway}")
        yield stack
    finally:
        stack.stop()


def body(seconds: float) -> dict[str, object]:
    """A completion that takes this time."""
    return {"prompt": "Once", "max_tokens": int(seconds * TOKENS_PER_SECOND), "ignore_eos": True}


def is_whole(spans: list[Span]) -> bool:
    """Whether all four services are there, and every span but the first has its parent."""
    ids = {span.span_id for span in spans}
    missing = [span for span in spans if span.parent_id and span.parent_id not in ids]
    return not missing and {span.service for span in spans} >= set(SERVICES)


async def whole_trace(collector: Collector, response: httpx.Response) -> list[Span]:
    spans = await asyncio.to_thread(collector.wait, response.headers["x-trace-id"], is_whole)
    assert is_whole(spans), sorted((span.service, span.name) for span in spans)
    return spans


def root(spans: list[Span]) -> Span:
    [found] = [span for span in spans if not span.parent_id]
    return found


async def test_failed_and_slow_requests_among_many(stack: Stack, collector: Collector) -> None:
    """200 at once: the 20 that fail and the 5 slow ones have whole traces, the rest a few."""
    short_timeout = f"http://{stack.addresses['short-timeout']}"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:

        async def send(url: str, seconds: float) -> httpx.Response:
            return await client.post(f"{url}{COMPLETIONS}", json=body(seconds))

        began = time.monotonic()
        responses = await asyncio.gather(
            *(send(short_timeout, 30) for _ in range(NUM_FAILED)),
            *(send(stack.url, 1.5 * SLOW_SECONDS) for _ in range(NUM_SLOW)),
            *(send(stack.url, 0.1) for _ in range(NUM_OK)),
        )
        took = time.monotonic() - began
    failed, slow = responses[:NUM_FAILED], responses[NUM_FAILED : NUM_FAILED + NUM_SLOW]
    others = responses[NUM_FAILED + NUM_SLOW :]
    assert [response.status_code for response in failed] == [504] * NUM_FAILED
    assert {response.status_code for response in (*slow, *others)} == {200}
    for response in (*failed, *slow):
        assert response.headers["x-trace-sampled"] == "true"
    for response in failed:
        assert root(await whole_trace(collector, response)).outcome == "deadline"
    for response in slow:
        assert root(await whole_trace(collector, response)).seconds >= SLOW_SECONDS

    # Requests that take long on a busy machine count as slow as well.
    exported = {span.trace_id for span in collector.spans()}
    ordinary = [each for each in others if each.elapsed.total_seconds() < SLOW_SECONDS / 2]
    said = [each for each in ordinary if each.headers["x-trace-sampled"] == "true"]
    assert len(said) <= 10 + took + 2, "a burst, and one a second"
    for response in ordinary:
        sampled = response.headers["x-trace-sampled"] == "true"
        assert sampled == (response.headers["x-trace-id"] in exported)


async def test_a_requested_trace_is_exported(stack: Stack, collector: Collector) -> None:
    """By header, whatever the rate."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=60, trust_env=False) as client:
        for _ in range(15):
            headers = {"x-weir-trace": "1"}
            response = await client.post(COMPLETIONS, json=body(0.1), headers=headers)
            assert response.headers["x-trace-sampled"] == "true"
            await whole_trace(collector, response)


async def test_requests_that_failed_over(stack: Stack, collector: Collector) -> None:
    """Each stream that another engine continued has a whole trace that says so."""
    engines = {name: 0 for name in ("inference", "inference-2")}
    async with httpx.AsyncClient(base_url=stack.url, timeout=120, trust_env=False) as client:
        streams = [asyncio.create_task(client.post(COMPLETIONS, json=body(6))) for _ in range(10)]
        while min(engines.values()) == 0:  # both engines run some of them
            for name in engines:
                page = (await client.get(f"http://{stack.metrics[name]}/metrics")).text
                [running] = re.findall(r"^vllm:num_requests_running\S* (\S+)$", page, re.MULTILINE)
                engines[name] = int(float(running))
            assert not any(task.done() for task in streams)
        stack.processes["inference-2"].kill()
        responses = await asyncio.gather(*streams)
    assert all(response.status_code == 200 for response in responses)
    traces = [await whole_trace(collector, response) for response in responses]
    failed_over = [root(spans) for spans in traces if root(spans).outcome == "failed_over"]
    assert len(failed_over) >= 1
    for span in failed_over:
        assert span.attributes["weir.num_failovers"] == 1
    events = [name for spans in traces for span in spans for name, _, _ in span.events]
    assert events.count("weir.failover") == len(failed_over)
