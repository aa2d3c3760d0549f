"""Sends random raw requests to a gateway over many connections; a separate process.

    python -m tests.wire.fuzzer PORT SEED SECONDS

Prints a JSON object: the number of requests by kind, of responses by status, and the problems.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections import Counter
from random import Random

import httptools

from tests.wire.requests import KINDS

NUM_CLIENTS = 24
MAX_PROBLEMS = 10
EXPECTED = frozenset({100, 200, 400, 404, 405, 408, 413, 421, 431, 501, 505})
"""Statuses that such requests may have."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with time 0: closing the socket sends RST."""


class Responses:
    """Parses the responses of one connection."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Raises httptools.HttpParserError if the responses are not valid HTTP."""
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())


class Fuzzer:
    """Clients of one gateway, and what they saw."""

    def __init__(self, port: int, seed: int, seconds: float) -> None:
        self._port = port
        self._seed = seed
        self._seconds = seconds
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.problems: list[str] = []

    async def run(self) -> None:
        """Run all clients until the time is over."""
        self._end = asyncio.get_running_loop().time() + self._seconds
        async with asyncio.TaskGroup() as tasks:
            for number in range(NUM_CLIENTS):
                tasks.create_task(self._client(Random(self._seed * NUM_CLIENTS + number)))

    async def _client(self, random: Random) -> None:
        while asyncio.get_running_loop().time() < self._end:
            kind = random.choice(list(KINDS))
            self.requests[kind] += 1
            data = KINDS[kind](random)
            responses = Responses()
            try:
                await self._connection(random, data, responses)
            except (OSError, TimeoutError):
                pass  # closed by the gateway, or nothing came
            except httptools.HttpParserError as error:
                self._problem(kind, data, f"response is not HTTP: {error}")
            self.statuses.update(responses.statuses)
            unexpected = set(responses.statuses) - EXPECTED
            if unexpected:
                self._problem(kind, data, f"statuses {sorted(unexpected)}")

    def _problem(self, kind: str, data: bytes, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{kind} {data[:200]!r}: {text}")

    async def _connection(self, random: Random, data: bytes, responses: Responses) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await self._send(random, data, writer)
            if random.random() < 0.1:
                await asyncio.sleep(random.random())  # a client that does not read
                return
            async with asyncio.timeout(random.choice((0.02, 0.2, 1.0))):
                while piece := await reader.read(65536):
                    responses.feed(piece)
        finally:
            if random.random() < 0.5:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, RESET
                )
            writer.transport.abort()

    async def _send(self, random: Random, data: bytes, writer: asyncio.StreamWriter) -> None:
        way = random.random()
        if way < 0.2:  # cut
            data = data[: random.randrange(len(data))]
        if 0.2 <= way < 0.5:  # dripped
            size = random.choice((1, 3, 17))
            for begin in range(0, min(len(data), 100 * size), size):
                writer.write(data[begin : begin + size])
                await writer.drain()
                await asyncio.sleep(0.01 * random.random())
            data = data[100 * size :]
        writer.write(data)
        await asyncio.wait_for(writer.drain(), 1.0)
        if random.random() < 0.2:
            writer.write_eof()


def main() -> None:
    """Run the fuzzer with a lower priority than the gateway's, and on one CPU of several."""
    port, seed, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    os.nice(10)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    fuzzer = Fuzzer(port, seed, seconds)
    asyncio.run(fuzzer.run())
    result = {
        "requests": fuzzer.requests,
        "statuses": {str(status): count for status, count in sorted(fuzzer.statuses.items())},
        "problems": fuzzer.problems,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
