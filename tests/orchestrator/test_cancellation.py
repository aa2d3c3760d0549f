"""Requests that end early: client disconnect, CancelRequest, deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from mesh.context import RequestContext, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from tests.helpers import eventually
from tests.orchestrator.fakes import FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, kinds_of, request

pytestmark = pytest.mark.timeout(20)

SEARCH = orchestrator_pb2.SummarizeRequest(query="fox")


async def states(running: Orchestrator) -> list[int]:
    """States of the active requests, from ListRequests."""
    listing = orchestrator_pb2.ListRequestsRequest()
    return [each.state for each in (await call_unary(running.stub.ListRequests, listing)).requests]


async def until_state(running: Orchestrator, name: str) -> None:
    """Waits until the only active request has this state."""
    wanted = orchestrator_pb2.RequestState.Value(f"REQUEST_STATE_{name}")
    async with asyncio.timeout(5):
        while await states(running) != [wanted]:
            await asyncio.sleep(0.01)


async def cancel(running: Orchestrator, request_id: str) -> bool:
    """Calls CancelRequest."""
    asked = orchestrator_pb2.CancelRequestRequest(request_id=request_id)
    return (await call_unary(running.stub.CancelRequest, asked)).cancelled


def slow(running: Orchestrator, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes requests stay in this state for a long time."""
    if state == "RETRIEVING":
        retriever = running.service._pipeline._search._retriever

        async def hang(*_: object) -> list[Any]:
            await asyncio.sleep(60)
            return []

        monkeypatch.setattr(retriever, "search", hang)
    elif state == "ENCODING":
        running.tokenizer.delay = 60
    elif state == "WAITING":
        running.engine.accept_delay = 60
    else:
        running.engine.delay = 0.3


async def all_of(responses: AsyncIterator[Any]) -> list[Any]:
    """All messages of a stream."""
    return [response async for response in responses]


def has_received(engine: FakeInference, number: int) -> bool:
    """Whether this number of requests has reached the engine."""
    return len(engine.requests) == number


async def generate_as(running: Orchestrator, request_id: str) -> None:
    """Runs a generation with this request id to its end."""
    with use_request(RequestContext(request_id=request_id)):
        await generate(running, request())


STATES = ["RETRIEVING", "ENCODING", "WAITING", "STREAMING"]


@pytest.mark.parametrize("state", STATES)
async def test_cancel_request_ends_a_search_in_any_state(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client receives a finish with reason abort within a second."""
    async with orchestrator(FakeInference(), retrieval_timeout_seconds=30) as running:
        slow(running, state, monkeypatch)
        with use_request(RequestContext(request_id="mine")):
            async with open_stream(running.stub.SummarizeStream, SEARCH) as responses:
                reading = asyncio.create_task(all_of(responses))
                await until_state(running, state)
                assert not await cancel(running, "other")
                assert await cancel(running, "mine")
                events = await asyncio.wait_for(reading, 1)
        await eventually(lambda: running.engine.num_open == 0, "the engine is free", 1)
    assert events[0].HasField("results")
    assert kinds_of(events).count("finish") == 1
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_ABORT


@pytest.mark.parametrize("state", ["ENCODING", "WAITING", "STREAMING"])
async def test_an_aborted_generation_sends_started_first(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of events holds even if no token was generated."""
    async with orchestrator(FakeInference()) as running:
        slow(running, state, monkeypatch)
        with use_request(RequestContext(request_id="mine")):
            async with open_stream(running.stub.Generate, request()) as responses:
                reading = asyncio.create_task(all_of(responses))
                await until_state(running, state)
                assert await cancel(running, "mine")
                events = await asyncio.wait_for(reading, 1)
    kinds = kinds_of(events)
    assert kinds[0] == "started"
    assert kinds.count("started") == kinds.count("finish") == 1
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_ABORT


@pytest.mark.parametrize("state", STATES)
async def test_a_disconnect_releases_everything_within_a_second(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permit, the table entry and the engine's stream end, in any state of the request."""
    async with orchestrator(
        FakeInference(), retrieval_timeout_seconds=30, max_concurrent_requests=1
    ) as running:
        slow(running, state, monkeypatch)
        async with open_stream(running.stub.SummarizeStream, SEARCH) as responses:
            reading = asyncio.create_task(all_of(responses))
            await until_state(running, state)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        service = running.service
        await eventually(lambda: len(service._requests) == 0, "the table is empty", 1)
        await eventually(
            lambda: service._pipeline._admission.num_admitted == 0, "no permit is held", 1
        )
        await eventually(lambda: running.engine.num_open == 0, "the engine is free", 1)


@pytest.mark.parametrize("state", ["ENCODING", "WAITING", "STREAMING"])
async def test_a_deadline_ends_a_request_in_any_state(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline reaches the upstream services, and no other replica is tried."""
    async with orchestrator(FakeInference(), FakeInference()) as running:
        for engine in running.engines:
            engine.accept_delay = 60 if state == "WAITING" else 0
            engine.delay = 0.3 if state == "STREAMING" else 0
        running.tokenizer.delay = 60 if state == "ENCODING" else 0
        deadline = time.monotonic() + 0.5
        with (
            use_request(RequestContext(request_id="late", deadline=deadline)),
            pytest.raises(MeshError) as caught,
        ):
            await asyncio.wait_for(generate(running, request()), 3)
        assert sum(len(engine.requests) for engine in running.engines) <= 1
        assert len(running.service._replicas.ready) == 2
    assert caught.value.kind is ErrorKind.DEADLINE


async def test_a_request_without_a_deadline_gets_one() -> None:
    """No request may hold a permit for ever."""
    async with orchestrator(FakeInference(), request_timeout_seconds=0.2) as running:
        running.engine.accept_delay = 60
        with pytest.raises(MeshError) as caught:
            await asyncio.wait_for(generate(running, request()), 3)
    assert caught.value.kind is ErrorKind.DEADLINE


async def test_list_requests_is_sorted_oldest_first() -> None:
    """Each entry has the id, method, model, age and token counts."""
    async with orchestrator(FakeInference()) as running:
        running.engine.accept_delay = 60
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number in range(1, 4):
                tasks.append(group.create_task(generate_as(running, f"r-{number}")))
                await eventually(
                    partial(has_received, running.engine, number), "the engine has the request"
                )
            listing = orchestrator_pb2.ListRequestsRequest()
            active = (await call_unary(running.stub.ListRequests, listing)).requests
            for task in tasks:
                task.cancel()
        await eventually(lambda: len(running.service._requests) == 0, "none is left", 1)
        assert await states(running) == []
    assert [each.request_id for each in active] == ["r-1", "r-2", "r-3"]
    assert {(each.method, each.model) for each in active} == {("Generate", "fake")}
    assert all(each.prompt_tokens > 0 and each.completion_tokens == 0 for each in active)
    ages = [each.age_seconds for each in active]
    assert ages == sorted(ages, reverse=True)


async def test_cancel_request_requires_an_id() -> None:
    """An empty id is refused."""
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError) as caught:
            await cancel(running, "")
    assert caught.value.param == "request_id"
