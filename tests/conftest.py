"""Hooks and fixtures of all tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mesh.rpc.polling import use_epoll1_engine

use_epoll1_engine()  # as the services do; before anything imports grpc

from mesh.observability import telemetry  # noqa: E402  (imports grpc)
from mesh.observability.recording.tracer import RecordingProvider  # noqa: E402
from tests.orchestrator.search.retrievers.postgres import postgres  # noqa: E402
from tests.workers import FileScheduling, is_e2e  # noqa: E402


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FileScheduling:
    """Schedules all end-to-end tests on one worker."""
    return FileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers, runs the slow end-to-end tests first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not is_e2e(item.nodeid))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the services' settings from the environment of the tests."""
    for prefix in ("GATEWAY_", "ORCHESTRATOR_", "TOKENIZER_", "INFERENCE_", "OTEL_"):
        for name in list(os.environ):
            if name.startswith(prefix):
                monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def tracer_provider() -> None:
    """Starts tracing as in a service, without an exporter."""
    telemetry.start("tests")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a database in a PostgreSQL that tests share."""
    with postgres() as url:
        yield url


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Exporter with all finished spans of this test."""
    exporter = InMemorySpanExporter()
    # Client spans are not sampled in the tests; by default their server spans would follow them.
    provider = RecordingProvider(
        Resource({}),
        ALWAYS_ON,
        [SimpleSpanProcessor(exporter)],
        InstrumentationScope("tests"),
        holds=False,
    )
    monkeypatch.setattr(telemetry, "tracer", provider.tracer)
    monkeypatch.setattr(telemetry, "silent", False)
    monkeypatch.setattr(telemetry, "follows_callers", False)
    monkeypatch.setattr(telemetry, "holds", False)
    yield exporter
    provider.shutdown()


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """Checks that the test leaves no asyncio task running."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(5):
        while {task for task in asyncio.all_tasks() - before if not task.done()} - {
            asyncio.current_task()
        }:
            await asyncio.sleep(0.01)
