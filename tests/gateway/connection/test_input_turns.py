"""Large input is parsed in short turns, one in each iteration of the event loop."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from gateway.connection import input_turns
from gateway.connection.input_turns import (
    SLICE_BYTES,
    TURN_SECONDS,
    Input,
    InputTurns,
    PausableFlow,
)
from gateway.http.server import GatewayServer
from tests.gateway.connection.raw import chunked, connected, post, read_all

SLICE_SECONDS = 0.0004
"""Time to parse a slice: three of them end a turn."""
SLICES_PER_TURN = 3


class Clock:
    """Time that advances as slices are parsed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slices: list[str] = []
        """The connections' names, in the order in which their slices were parsed."""

    def perf_counter(self) -> float:
        return self.now


class Connection:
    """A connection that records its input."""

    def __init__(self, name: str, turns: InputTurns, clock: Clock) -> None:
        self._name, self._clock = name, clock
        self.transport = Mock()
        self.transport.is_closing.return_value = False
        self.flow = PausableFlow(self.transport)
        self.input = Input(turns, self.flow, self._parse)
        self.parsed = b""

    def _parse(self, data: bytes) -> None:
        assert len(data) <= SLICE_BYTES
        self.parsed += data
        self._clock.slices.append(self._name)
        self._clock.now += SLICE_SECONDS

    @property
    def is_paused(self) -> bool:
        """Whether the transport does not read."""
        calls = [name for name, _, _ in self.transport.method_calls if name.endswith("_reading")]
        return bool(calls) and calls[-1] == "pause_reading"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(input_turns, "time", made)
    return made


async def test_connections_take_turns(clock: Clock) -> None:
    """The time of one iteration does not grow with the number of connections that send."""
    turns = InputTurns()
    connections = [Connection(name, turns, clock) for name in "abc"]
    data = [bytes([number]) * (5 * SLICE_BYTES + 1) for number in range(3)]
    for connection, each in zip(connections, data, strict=True):
        connection.input.receive(each)
    in_iterations = [clock.slices[:]]
    while sum(map(len, in_iterations)) < 18:
        clock.slices.clear()
        await asyncio.sleep(0)
        in_iterations.append(clock.slices[:])
    assert in_iterations == [[name] * SLICES_PER_TURN for name in "aabcbc"]
    assert [connection.parsed for connection in connections] == data
    assert not any(connection.is_paused for connection in connections)


async def test_reading_is_paused_until_the_input_is_parsed(clock: Clock) -> None:
    """Also if the application resumes it meanwhile, and longer if the application pauses it."""
    connection = Connection("a", InputTurns(), clock)
    connection.input.receive(b"x" * 10 * SLICE_BYTES)
    connection.flow.pause_reading()
    connection.flow.resume_reading()
    assert connection.is_paused
    connection.flow.pause_reading()
    while len(clock.slices) < 10:
        assert connection.is_paused
        await asyncio.sleep(0)
    assert connection.is_paused
    connection.flow.resume_reading()
    assert not connection.is_paused


async def test_small_input_is_parsed_at_once_and_in_order(clock: Clock) -> None:
    """Nothing overtakes what waits, and what is lost is not parsed."""
    turns = InputTurns()
    large, small = Connection("a", turns, clock), Connection("b", turns, clock)
    large.input.receive(b"x" * 4 * SLICE_BYTES)
    small.input.receive(b"y" * SLICE_BYTES)
    assert small.parsed == b"y" * SLICE_BYTES
    large.input.receive(b"z")
    assert large.parsed == b"x" * SLICES_PER_TURN * SLICE_BYTES
    await asyncio.sleep(0)
    assert large.parsed == b"x" * 4 * SLICE_BYTES + b"z"
    large.input.receive(b"x" * 4 * SLICE_BYTES)
    large.input.drop()
    await asyncio.sleep(0)
    assert len(large.parsed) == 7 * SLICE_BYTES + 1


async def test_the_loop_runs_while_bodies_in_single_bytes_arrive(gateway: GatewayServer) -> None:
    """Ten of them at once; all are read to their end."""
    body = b'{"prompt":"%s"}' % (b"Hi" * 20_000)
    framed = chunked(body, 1, b"") + b"0\r\n\r\n"
    request = post("/v1/completions", framed, "transfer-encoding: chunked", "connection: close")
    occupied: list[float] = []
    take_turn = Input.take_turn

    def timed(self: Input) -> bool:
        started = asyncio.get_running_loop().time()
        left = take_turn(self)
        occupied.append(asyncio.get_running_loop().time() - started)
        return left

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Input, "take_turn", timed)

        async def answer() -> bytes:
            async with connected(gateway) as (reader, writer):
                writer.write(request)
                return await read_all(reader)

        answers = await asyncio.gather(*(answer() for _ in range(10)))
    assert [each[:13] for each in answers] == [b"HTTP/1.1 200 "] * 10
    assert len(occupied) > 10 * len(framed) / 2**20
    assert sorted(occupied)[len(occupied) // 2] < 10 * TURN_SECONDS
