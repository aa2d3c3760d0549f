"""Readiness of the orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.application import application
from orchestrator.settings import OrchestratorSettings
from tests.helpers import eventually
from tests.orchestrator.fakes import UNUSED_ADDRESS, FakeInference, Orchestrator, orchestrator


@asynccontextmanager
async def reported(running: Orchestrator) -> AsyncIterator[list[bool]]:
    """The states that `watch_ready` has reported, in order."""
    states: list[bool] = []

    async def set_ready(ready: bool) -> None:
        # Yields to the event loop, as the health service does.
        await asyncio.sleep(0)
        states.append(ready)

    watching = asyncio.create_task(running.service.watch_ready(set_ready))
    try:
        yield states
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.timeout(20)
async def test_ready_while_an_engine_is_ready(no_tasks_left: None) -> None:
    """One engine is enough."""
    async with (
        orchestrator(FakeInference(), FakeInference()) as running,
        reported(running) as states,
    ):
        await eventually(lambda: states[-1:] == [True], "ready")
        one, two = (upstream.server for upstream in running.upstreams)
        await one.set_ready(False)
        await eventually(lambda: len(running.service._replicas.ready) == 1, "one is left")
        assert states[-1]
        await two.set_ready(False)
        await eventually(lambda: not states[-1], "not ready")
        await one.set_ready(True)
        await eventually(lambda: states[-1], "ready again")


@pytest.mark.timeout(20)
async def test_quick_changes_end_in_the_current_state(no_tasks_left: None) -> None:
    """A change during the report of the previous one is not lost."""
    async with orchestrator(FakeInference()) as running, reported(running) as states:
        await eventually(lambda: states[-1:] == [True], "ready")
        server = running.upstreams[0].server
        for _ in range(10):
            await server.set_ready(False)
            await server.set_ready(True)
        await server.set_ready(False)
        await eventually(lambda: not states[-1], "not ready")


@pytest.mark.timeout(20)
async def test_not_ready_without_a_tokenizer(no_tasks_left: None) -> None:
    """Regardless of the engines."""
    settings = OrchestratorSettings(tokenizer_host=UNUSED_ADDRESS, inference_host=UNUSED_ADDRESS)
    states: list[bool] = []

    async def set_ready(ready: bool) -> None:
        states.append(ready)

    async with application(settings) as service:
        watching = asyncio.create_task(service.watch_ready(set_ready))
        await asyncio.sleep(0.3)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert states
    assert not any(states)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("content", [b"no JSON", b'{"model": {"type": "Unknown"}}'])
async def test_not_ready_while_the_tokenizers_files_do_not_parse(
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    no_tasks_left: None,
) -> None:
    """The orchestrator logs an error, keeps running, and is ready once the files are valid."""
    monkeypatch.setattr("orchestrator.readiness.UNUSABLE_RETRY_SECONDS", 0.05)
    async with orchestrator(FakeInference()) as running:
        valid = running.tokenizer.files
        running.tokenizer.serve_files({"tokenizer.json": content})
        async with reported(running) as states:
            message = "tokenizer files cannot be loaded"
            await eventually(lambda: message in caplog.text, "the error is logged")
            assert states
            assert not any(states)
            running.tokenizer.serve_files(valid)
            await eventually(lambda: states[-1], "ready with valid files")


@pytest.mark.timeout(20)
async def test_files_are_not_downloaded_again_on_reconnection(no_tasks_left: None) -> None:
    """The client sends the SHA-256 of the files it holds, and the service sends none."""
    async with orchestrator(FakeInference()) as running, reported(running) as states:
        await eventually(lambda: states[-1:] == [True], "ready")
        [upstream] = running.service._pipeline._tokenizers.upstreams
        held = await upstream.client.current()
        server = running.tokenizer_served.server
        await server.set_ready(False)
        await eventually(lambda: not states[-1], "not ready")
        await server.set_ready(True)
        await eventually(lambda: states[-1], "ready again")
        assert await upstream.client.current() is held
        assert running.tokenizer.num_checks == 2
        assert running.tokenizer.num_downloads == 1


async def test_the_tokenizer_is_fetched_before_the_first_request(no_tasks_left: None) -> None:
    """Readiness includes the download of the tokenizer."""
    async with orchestrator(FakeInference()) as running, reported(running) as states:
        await eventually(lambda: states[-1:] == [True], "ready")
        [upstream] = running.service._pipeline._tokenizers.upstreams
        assert upstream.client._tokenizer is not None
