"""Memory, errors and TTFT of new clients, with 1,000 idle and 256 active streams for ten minutes.

    python -m benchmarks.idle_clients --out docs/benchmarks/idle_clients.json

One gateway and one orchestrator use three fake engines. The first accepts requests and emits no
token: its clients are idle and receive keep-alive comments, at different times because they connect
one after another. The second emits ten tokens a second to each active client, which sends its next
request as soon as the last one is answered. Twice a second a new client connects and sends a
request to the third engine, which answers at once. Its time to the first token (TTFT) is compared
with that of new clients before the others connected. The new clients run in a separate process, so
that they measure the services, not the event loop that reads all other streams.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import uvloop

from benchmarks.harness.percentile import percentile
from benchmarks.harness.processes import Processes
from benchmarks.harness.sse_load import Connection, Stream, completion_request, connect
from benchmarks.harness.stack import Services

IDLE_TOKENS_PER_SECOND = 1 / 7200
OPENING_SECONDS = 50.0
"""Time over which the idle clients connect."""
PROBE_TOKENS = 4
LIMITS = {
    "orchestrator": ("--max-concurrent-requests", "4096", "--max-outstanding-tokens", "4000000"),
    # Idle requests must not time out.
    "gateway": ("--request-timeout-seconds", "3600"),
}
SAMPLE_SECONDS = 5.0
SETTLE_SECONDS = 15.0
"""Time until all active clients have started, which is not measured."""
SETTLE_TIMEOUT_SECONDS = 120.0

KIB = 1024


class Clients:
    """All clients of one run, and their measurements."""

    def __init__(
        self, services: Services, new_clients: Executor, options: argparse.Namespace
    ) -> None:
        self._services = services
        self._new_clients = new_clients
        self._options = options
        self._held = ExitStack()
        self.probes: list[Stream] = []
        self.active: list[Stream] = []
        self.memory: list[int] = []
        self.num_idle_lost = 0

    async def run(self) -> None:
        """Runs all clients for `options.minutes`."""
        idle = []
        for _ in range(self._options.idle):
            idle.append(await self._open_idle())
            await asyncio.sleep(OPENING_SECONDS / self._options.idle)
        async with asyncio.timeout(SETTLE_TIMEOUT_SECONDS):
            while not all(connection.accepted for connection in idle):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        end = time.monotonic() + SETTLE_SECONDS + self._options.minutes * 60
        async with asyncio.TaskGroup() as group:
            for number in range(self._options.active):
                group.create_task(self._run_active(number, end))
            await asyncio.sleep(SETTLE_SECONDS)
            group.create_task(self._watch(end))
            self.probes = await asyncio.get_running_loop().run_in_executor(
                self._new_clients, probe, self._services.url, self._options.minutes * 60
            )
        self.num_idle_lost = sum(connection.transport.is_closing() for connection in idle)
        self._held.close()

    async def _open_idle(self) -> Connection:
        connection = await connect(self._services.url)
        self._held.callback(connection.transport.close)
        connection.transport.write(self._request("idle", 512))
        return connection

    async def _run_active(self, number: int, end: float) -> None:
        connection = await connect(self._services.url)
        self._held.callback(connection.transport.close)
        num_tokens = self._options.tokens
        await asyncio.sleep(number / self._options.active * num_tokens / self._options.pace)
        while time.monotonic() < end:
            request = self._request("active", num_tokens)
            self.active.append(await connection.read(request, num_tokens))

    async def _watch(self, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.memory.append(self._services.memory_bytes())

    def _request(self, model: str, num_tokens: int) -> bytes:
        return completion_request(self._services.url, num_tokens, model=model)


def probe(url: str, seconds: float) -> list[Stream]:
    """Runs new clients, two a second. Runs in a separate process."""
    gc.disable()  # its pauses would add to the TTFT
    return uvloop.run(_probe(url, seconds))


async def _probe(url: str, seconds: float) -> list[Stream]:
    request = completion_request(url, PROBE_TOKENS, model="quick")
    found: list[Stream] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(random.uniform(0.25, 0.75))
        began = time.perf_counter()
        connection = await connect(url)
        waited = time.perf_counter() - began
        stream = await connection.read(request, PROBE_TOKENS)
        stream.ttft += waited
        connection.transport.close()
        found.append(stream)
    return found


def growth(memory: Sequence[int]) -> float:
    """Growth in KiB per minute: least squares over the second half of the run."""
    late = memory[len(memory) // 2 :]
    minutes = [number * SAMPLE_SECONDS / 60 for number in range(len(late))]
    return statistics.linear_regression(minutes, late).slope / KIB


def start(processes: Processes, options: argparse.Namespace) -> Services:
    """Starts the services with the three fake engines."""
    fake = ("--fake-model", "--max-num-seqs", "2048", "--fake-tokens-per-second")
    services = Services(
        processes,
        engine=(*fake, str(options.pace), "--model-name", "active"),
        more_engines={
            "idle": (*fake, str(IDLE_TOKENS_PER_SECOND), "--model-name", "idle"),
            "quick": (*fake, "0", "--model-name", "quick"),
        },
        limits=LIMITS,
    )
    services.wait_ready()
    return services


def figures_of(alone: list[Stream], clients: Clients) -> dict[str, float]:
    """The reported figures; `alone` are new clients without the others."""
    streams = (*alone, *clients.probes, *clients.active)
    return {
        "errors": sum(bool(stream.error) for stream in streams),
        "idle_streams_lost": clients.num_idle_lost,
        "active_answers": len(clients.active),
        "new_clients": len(clients.probes),
        "ttft_alone_p50_ms": 1e3 * percentile([s.ttft for s in alone], 50),
        "ttft_alone_p99_ms": 1e3 * percentile([s.ttft for s in alone], 99),
        "ttft_p50_ms": 1e3 * percentile([s.ttft for s in clients.probes], 50),
        "ttft_p99_ms": 1e3 * percentile([s.ttft for s in clients.probes], 99),
        "memory_mib": clients.memory[-1] / KIB**2,
        "memory_growth_kib_per_minute": growth(clients.memory),
    }


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--idle", type=int, default=1000, help="idle streams")
    parser.add_argument("--active", type=int, default=256, help="active streams")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=100, help="tokens of an active stream")
    parser.add_argument("--pace", type=float, default=10.0, help="tokens/s of an active stream")
    parser.add_argument("--alone", type=float, default=60.0, help="seconds of new clients only")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--log", type=Path, help="file for the output of the services")
    return parser.parse_args()


def main() -> None:
    """Runs the clients, prints the figures, and writes them to `--out`."""
    options = parse_options()
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "processes.log"
        with Processes(log) as processes:
            services = start(processes, options)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as new_clients:
                new_clients.submit(probe, services.url, 5).result()  # warms up
                alone = new_clients.submit(probe, services.url, options.alone).result()
                clients = Clients(services, new_clients, options)
                uvloop.run(clients.run())
    figures = figures_of(alone, clients)
    for name, value in figures.items():
        print(f"{name:<30}{value:12.1f}")
    errors = [s.error for s in (*alone, *clients.probes, *clients.active) if s.error]
    print("\n".join(errors[:3]))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**figures, "memory": clients.memory}, indent=1) + "\n")


if __name__ == "__main__":
    main()
