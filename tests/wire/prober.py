"""Measures how fast a gateway answers `/livez`; a separate process.

    python -m tests.wire.prober PORT PROCESS_ID SECONDS

A latency has two parts: the time in which gateway and prober waited for a CPU, because the machine
was busy with other processes, and the rest, which is the gateway's own. The kernel counts the
first part for each thread. Prints a JSON object with the latencies in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import NamedTuple

from tests.wire.cpu_wait import CpuWait

INTERVAL_SECONDS = 0.02
REQUEST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


class Probe(NamedTuple):
    """One request."""

    latency: float
    """In seconds."""
    cpu_wait: float
    """Seconds of it in which the gateway or the prober waited for a CPU."""

    @property
    def own(self) -> float:
        """Seconds that the gateway needed."""
        return self.latency - self.cpu_wait


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


async def measure(port: int, process_id: int, seconds: float) -> list[Probe]:
    """Probe the gateway every INTERVAL_SECONDS."""
    gateway, prober = CpuWait(process_id), CpuWait(os.getpid())
    end = time.monotonic() + seconds
    probes: list[Probe] = []
    while time.monotonic() < end:
        before = gateway.read(), prober.read()
        taken = await latency(port)
        probes.append(Probe(taken, gateway.since(before[0]) + prober.since(before[1])))
        await asyncio.sleep(INTERVAL_SECONDS)
    return probes


def summary(probes: list[Probe]) -> dict[str, object]:
    """The distributions of the latencies."""
    ordered = sorted(probe.latency for probe in probes)
    own = sorted(probe.own for probe in probes)
    return {
        "num_probes": len(probes),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "max": ordered[-1],
        "p99_own": own[len(own) * 99 // 100],
        "max_own": own[-1],
        "max_cpu_wait": max(probe.cpu_wait for probe in probes),
    }


def main() -> None:
    """Measure, and print the result."""
    port, process_id, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(summary(asyncio.run(measure(port, process_id, seconds)))))


if __name__ == "__main__":
    main()
