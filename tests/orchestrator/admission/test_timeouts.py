"""The first-token deadline and the idle timeout."""

from __future__ import annotations

import time

import pytest

from mesh.context import RequestContext, seconds_of, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_stream
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, request, text_of

pytestmark = pytest.mark.timeout(30)


async def free(running: Orchestrator) -> None:
    """Asserts that the request and the engine's stream have ended."""
    await eventually(lambda: running.engine.num_open == 0, "the engine is free", 1)
    await eventually(lambda: len(running.service._requests) == 0, "no request is active", 1)


def within(first: float | None = None, idle: float | None = None) -> RequestContext:
    """A request with these limits, in seconds."""
    deadline = None if first is None else time.monotonic() + first
    return RequestContext(request_id="r", first_token_deadline=deadline, idle_timeout=idle)


async def test_a_late_first_token_ends_the_request_and_the_engines_stream() -> None:
    """The limit arrives as metadata; the error names it."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 30
        hurried = use_request(within(first=0.2, idle=20))
        with hurried, pytest.raises(MeshError, match="first token") as caught:
            await generate(running, request())
        assert caught.value.kind is ErrorKind.DEADLINE
        await free(running)


async def test_a_pause_between_tokens_ends_the_request() -> None:
    """The tokens before the pause were delivered."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.05
        with use_request(within(first=20, idle=1)):
            async with open_stream(running.stub.Generate, request()) as responses:
                await anext(responses)
                assert (await anext(responses)).HasField("delta")
                running.engine.delay = 30
                with pytest.raises(MeshError, match="after the last one") as caught:
                    async for _ in responses:
                        pass
        assert caught.value.kind is ErrorKind.DEADLINE
        await free(running)


async def test_a_stream_within_the_limits_is_unchanged() -> None:
    """No limit applies to the whole answer."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.02
        with use_request(within(first=5, idle=5)):
            assert text_of(await generate(running, request())) == SCRIPT


def test_invalid_limits_in_metadata_are_ignored() -> None:
    """Only finite numbers from 0 are limits."""
    assert [seconds_of(text) for text in ("", "x", "-1", "inf", "nan", None)] == [None] * 6
    assert seconds_of("1.5") == 1.5
