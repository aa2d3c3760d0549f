"""Stacks with the fake engine that export their traces, and checks of whole traces."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.support.stack import SERVICES, Stack, free_ports
from tests.e2e.support.tracing.collector import Collector, Span

COMPLETIONS = "/v1/completions"
SHORT_TIMEOUT = "short-timeout"
"""Name of the gateway whose requests end after `FAILED_SECONDS`."""

LONG_PROMPT = "Once upon a time. " * 40
"""Longer than the prompts that the orchestrator encodes without the tokenizer service."""

FAILED_SECONDS = 5.0

SETTINGS = {
    "OTEL_BSP_SCHEDULE_DELAY": "200",
    "INFERENCE_FAKE_MODEL": "true",
    "INFERENCE_MAX_NUM_SEQS": "2048",
    "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": "4096",
    "ORCHESTRATOR_MAX_OUTSTANDING_TOKENS": "4000000",
}


@contextmanager
def fake_stack(
    folder: Path,
    collector: Collector,
    settings: Mapping[str, str],
    engines: Sequence[str] = ("inference",),
) -> Iterator[Stack]:
    """The four services with these engines, and the gateway `SHORT_TIMEOUT`."""
    exporter = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": collector.protocol,
    }
    stack = Stack(folder, None, {**SETTINGS, **settings, **exporter})
    for name in (*engines[1:], SHORT_TIMEOUT):
        stack.addresses[name], stack.metrics[name] = (f"127.0.0.1:{port}" for port in free_ports(2))
    stack._environment["INFERENCE_HOST"] = ",".join(stack.addresses[name] for name in engines)
    try:
        stack.start()
        for name in engines[1:]:
            stack.start_as(name, "inference")
        limit = ("--request-timeout-seconds", str(FAILED_SECONDS))
        stack.start_as(SHORT_TIMEOUT, "gateway", *limit)
        stack.wait_ready()
        stack.wait_ready(url=f"http://{stack.addresses[SHORT_TIMEOUT]}")
        yield stack
    finally:
        stack.stop()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Without a limit of connections."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, trust_env=False, limits=limits) as client:
        yield client


def body(seconds: float, tokens_per_second: float) -> dict[str, object]:
    """A completion that takes this time."""
    num_tokens = int(seconds * tokens_per_second)
    return {"prompt": LONG_PROMPT, "max_tokens": num_tokens, "ignore_eos": True}


async def num_running(
    client: httpx.AsyncClient, stack: Stack, engines: Sequence[str] = ("inference",)
) -> list[int]:
    """Running requests of each engine."""
    running = []
    for name in engines:
        page = (await client.get(f"http://{stack.metrics[name]}/metrics")).text
        [value] = re.findall(r"^vllm:num_requests_running\S* (\S+)$", page, re.MULTILINE)
        running.append(int(float(value)))
    return running


def is_whole(spans: list[Span]) -> bool:
    """Whether all four services are there, and every span but the first has its parent."""
    ids = {span.span_id for span in spans}
    missing = [span for span in spans if span.parent_id and span.parent_id not in ids]
    return not missing and {span.service for span in spans} >= set(SERVICES)


async def whole_trace(collector: Collector, response: httpx.Response) -> list[Span]:
    """The spans of the request, which must be whole."""
    spans = await asyncio.to_thread(collector.wait, response.headers["x-trace-id"], is_whole)
    assert is_whole(spans), sorted((span.service, span.name) for span in spans)
    return spans


def root(spans: list[Span]) -> Span:
    """The first span of the request."""
    [found] = [span for span in spans if not span.parent_id]
    return found
