"""Tokens that pass the tasks of a generation: the same text, accounts, failover and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.deltas import Delta
from mesh.protocol.summary import Grounded
from mesh.rpc.channel import call_unary, open_stream
from mesh.rpc.multiplex.channel import MultiplexChannel
from mesh.rpc.multiplex.service import ServedCall
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.generation import Progress
from orchestrator.routing.direct_path import Taken
from orchestrator.search.summary import SummaryAssembler
from orchestrator.summarization import DirectSummary
from orchestrator.text.assembler import TextAssembler
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator

NUM_TOKENS = len(FakeInference().ids)


async def opened(channel: grpc.aio.Channel) -> None:
    """Opens the multiplexed stream of a channel."""
    assert isinstance(channel, MultiplexChannel)
    await eventually(lambda: channel.stream() is not None, "the stream is open")


@asynccontextmanager
async def multiplexed(num_engines: int = 1) -> AsyncIterator[Orchestrator]:
    """An orchestrator whose calls, and those of its client, go through multiplexed streams."""
    engines = [FakeInference() for _ in range(num_engines)]
    for engine in engines:
        engine.delay = 0.002
    async with orchestrator(*engines) as running:
        await opened(running.served.channel)
        for replica in running.service._replicas.ready:
            await opened(replica.channel)
        yield running


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The messages that were sent past the task of their call."""
    found: list[object] = []
    write_now = ServedCall.write_now

    def recording(self: ServedCall, response: object) -> bool:
        found.append(response)
        return write_now(self, response)

    monkeypatch.setattr(ServedCall, "write_now", recording)
    return found


async def generate(running: Orchestrator, **fields: Any) -> list[Any]:
    """All messages of a generation."""
    request = orchestrator_pb2.GenerateRequest(text="Hello", **fields)
    async with open_stream(running.stub.Generate, request) as responses:
        return [response async for response in responses]


def text_of(messages: list[Any]) -> str:
    return "".join(each.delta.text for each in messages)


async def test_tokens_pass_and_the_end_comes_once(written: list[object]) -> None:
    """Text and counts are those of the engine's tokens."""
    async with multiplexed() as running:
        messages = await generate(running)
    assert text_of(messages) == SCRIPT
    assert sum(each.delta.num_tokens for each in messages) == NUM_TOKENS
    assert [each.HasField("finish") for each in messages].count(True) == 1
    assert messages[-1].finish.usage.completion_tokens == NUM_TOKENS
    assert messages[0].HasField("started")
    assert written


async def test_a_stop_string_ends_the_text(written: list[object]) -> None:
    """Also one over several tokens; nothing follows, and the engine's call is cancelled."""
    async with multiplexed() as running:
        messages = await generate(running, stop=["lazy dog"])
        await eventually(lambda: running.engine.num_open == 0, "the engine's call has ended")
    assert text_of(messages) == SCRIPT[: SCRIPT.index("lazy dog")]
    finishes = [each.finish for each in messages if each.HasField("finish")]
    assert [each.stop_string for each in finishes] == ["lazy dog"]
    assert written


async def test_another_replica_continues_after_the_tokens_that_passed(
    written: list[object],
) -> None:
    """The tokens that were taken count as delivered."""
    messages: list[Any] = []
    async with multiplexed(2) as running:
        for engine in running.engines:
            engine.fail_after = 20
        request = orchestrator_pb2.GenerateRequest(text="Hello")
        async with open_stream(running.stub.Generate, request) as responses:
            async for response in responses:
                messages.append(response)
                [other] = [engine for engine in running.engines if not engine.requests] or [None]
                if other is not None:
                    other.fail_after = None
        resumed = [each.num_resumed_tokens for e in running.engines for each in e.requests]
    assert text_of(messages) == SCRIPT
    assert messages[-1].finish.usage.completion_tokens == NUM_TOKENS
    assert sorted(resumed) == [0, 20]
    assert messages[-1].finish.num_resumptions == 1
    assert written


async def test_a_failure_is_raised_as_the_requests(
    written: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of the text is not one of the engine: no other replica is tried."""
    push = TextAssembler.push

    def failing(self: TextAssembler, chunk: Any) -> Any:
        if written and chunk.token_ids:
            raise MeshError(ErrorKind.UNAVAILABLE, "no text")
        return push(self, chunk)

    monkeypatch.setattr(TextAssembler, "push", failing)
    async with multiplexed(2) as running:
        with pytest.raises(MeshError, match="no text"):
            await generate(running)
        assert sum(len(engine.requests) for engine in running.engines) == 1
        num_open = lambda: sum(engine.num_open for engine in running.engines)  # noqa: E731
        await eventually(lambda: num_open() == 0, "the engine's call has ended")


class OnlyCall:
    """A generation, and a call that takes no message."""

    def send_directly(self, call: Any, send: Any) -> None:
        self.send = send

    def write_now(self, response: object) -> bool:
        return False


def test_a_delta_that_is_too_large_to_pass_counts_its_tokens_once() -> None:
    """The reader gets it before the next one, whose tokens are its own."""
    summary, running = SummaryAssembler(1000, Grounded.CITE), OnlyCall()
    taking: Any = running
    DirectSummary(taking, repr).begin(taking, summary)
    assert running.send(Progress(delta=Delta("Foxes", 3))) is Taken.WAKE
    deltas = list(summary.read([Progress(delta=Delta(" live in dens.", 2))]))
    assert deltas == [Delta("Foxes", 3), Delta(" live in dens.", 2)]


async def test_an_operator_ends_a_request(written: list[object]) -> None:
    """Its client gets what has passed, and one finish."""
    async with multiplexed() as running:
        running.engine.delay = 0.02
        request = orchestrator_pb2.GenerateRequest(text="Hello")
        messages: list[Any] = []
        is_cancelled = False
        async with open_stream(running.stub.Generate, request) as responses:
            async for response in responses:
                messages.append(response)
                if len(written) >= 3 and not is_cancelled:
                    is_cancelled = True
                    [active] = running.service._requests
                    asked = orchestrator_pb2.CancelRequestRequest(request_id=active.request_id)
                    await call_unary(running.stub.CancelRequest, asked)
    finishes = [each.finish for each in messages if each.HasField("finish")]
    assert [each.reason for each in finishes] == [common_pb2.FINISH_REASON_ABORT]
    assert SCRIPT.startswith(text_of(messages))
