"""What every test may use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from mesh.observability import telemetry, tracing
from tests.workers import WholeFiles, is_of_stack


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> WholeFiles:
    """Two workers never start stacks at once."""
    return WholeFiles(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among workers, what takes longest comes first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not is_of_stack(item.nodeid))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests leaks into them."""
    for prefix in ("GATEWAY_", "ORCHESTRATOR_", "TOKENIZER_", "INFERENCE_", "OTEL_"):
        for name in list(os.environ):
            if name.startswith(prefix):
                monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def tracer_provider() -> None:
    """Spans have ids in the tests as they have in a service, and go nowhere."""
    telemetry.start("tests")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Every span of this test, once it has ended."""
    exporter = InMemorySpanExporter()
    # The callers' spans are not recorded in the tests, and a parent's word would count.
    provider = TracerProvider(sampler=ALWAYS_ON)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "TRACER", provider.get_tracer("tests"))
    monkeypatch.setattr(telemetry, "silent", False)
    monkeypatch.setattr(telemetry, "follows_callers", False)
    yield exporter
    provider.shutdown()


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """After the test, no task but its own is alive: nothing was left running."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(5):
        while {task for task in asyncio.all_tasks() - before if not task.done()} - {
            asyncio.current_task()
        }:
            await asyncio.sleep(0.01)
