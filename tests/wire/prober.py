"""Measures how fast a gateway answers `/livez`, beside an idle server; a separate process.

    python -m tests.wire.prober PORT SECONDS

The idle server is in another process. When both are slow, the machine is busy. Prints a JSON object
with latencies in seconds; `max_excess` is the largest latency without what the idle server
needed at most within a second of it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

INTERVAL_SECONDS = 0.02
WINDOW = round(1 / INTERVAL_SECONDS)
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


async def measure(port: int, idle_port: int, seconds: float) -> dict[str, object]:
    """Probe both servers at the same times."""
    pairs: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        gateway, idle = await asyncio.gather(latency(port), latency(idle_port))
        pairs.append((gateway, idle))
        await asyncio.sleep(INTERVAL_SECONDS)
    return summary(pairs)


def summary(pairs: list[tuple[float, float]]) -> dict[str, object]:
    """Latencies of pairs (gateway, idle server)."""
    idle = [pair[1] for pair in pairs]
    excess = [
        gateway - max(idle[max(0, place - WINDOW) : place + WINDOW])
        for place, (gateway, _) in enumerate(pairs)
    ]
    ordered = sorted(pair[0] for pair in pairs)
    return {
        "num_probes": len(pairs),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "max": ordered[-1],
        "max_idle_server": max(idle),
        "max_excess": max(excess),
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
