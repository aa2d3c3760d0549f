"""Measures how fast a gateway answers `/livez`, beside an idle server; a separate process.

    python -m tests.wire.prober PORT SECONDS

The idle server is in another process. A second in which it needs longer than
MAX_IDLE_SERVER_SECONDS is busy: the machine is. Prints a JSON object with the gateway's latencies
in seconds; `max_quiet` and `max_busy` are the largest ones of quiet and of busy seconds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import NamedTuple

INTERVAL_SECONDS = 0.02
MAX_IDLE_SERVER_SECONDS = 0.02
REQUEST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"

IDLE_SERVER = """
import asyncio
async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\nok\\n")
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def latency(port: int) -> float:
    """Seconds until the end of the response on a new connection. Raises OSError."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    answer = await asyncio.wait_for(reader.read(), 10)
    seconds = time.perf_counter() - started
    writer.close()
    if not (answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok\n")):
        raise OSError(f"answer {answer[:100]!r}")
    return seconds


class Probe(NamedTuple):
    """One request."""

    start: float
    """Seconds since the start of the measurement."""
    latency: float
    """In seconds."""

    @property
    def windows(self) -> range:
        """The seconds which it overlaps."""
        return range(int(self.start), int(self.start + self.latency) + 1)


async def measure(port: int, idle_port: int, seconds: float) -> dict[str, object]:
    """Probe both servers, independently of each other: one may be slow when the other is not."""
    start = time.monotonic()

    async def probe(port: int) -> list[Probe]:
        probes: list[Probe] = []
        while (since := time.monotonic() - start) < seconds:
            probes.append(Probe(since, await latency(port)))
            await asyncio.sleep(INTERVAL_SECONDS)
        return probes

    return summary(*await asyncio.gather(probe(port), probe(idle_port)))


def summary(gateway: list[Probe], idle: list[Probe]) -> dict[str, object]:
    """The gateway's latencies, judged second by second."""
    busy = {
        window
        for probe in idle
        if probe.latency > MAX_IDLE_SERVER_SECONDS
        for window in probe.windows
    }
    largest = {False: 0.0, True: 0.0}
    for probe in gateway:
        is_busy = not busy.isdisjoint(probe.windows)
        largest[is_busy] = max(largest[is_busy], probe.latency)
    ordered = sorted(probe.latency for probe in gateway)
    return {
        "num_probes": len(gateway),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "max_idle_server": max(probe.latency for probe in idle),
        "num_windows": len({window for probe in (*gateway, *idle) for window in probe.windows}),
        "num_busy": len(busy),
        "max_quiet": largest[False],
        "max_busy": largest[True],
    }


def main() -> None:
    """Start the idle server, measure, and print the result."""
    command = [sys.executable, "-c", IDLE_SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as idle:
        assert idle.stdout is not None
        idle_port = int(idle.stdout.readline())
        try:
            result = asyncio.run(measure(int(sys.argv[1]), idle_port, float(sys.argv[2])))
        finally:
            idle.kill()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
