"""How evenly the kernel spreads connections over processes that listen on one port.

    python -m benchmarks.reuse_port
    python -m benchmarks.reuse_port --pods 1 2

With SO_REUSEPORT the kernel chooses a listener by a hash of each connection's addresses, whatever
the load of the processes. A client of a pod with several workers has no choice; with several pods
the gateway calls the orchestrator with the fewest running calls. `--pods` measures the relay with
that many gateways and orchestrators instead: memory of a process, and CPU time of a request of two
tokens (docs/decisions/0107-scale-by-pods.md).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import selectors
import socket
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.harness.processes import Processes, free_port
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import FAKE_MODEL, Services

CONNECTIONS = (1, 2, 8, 32, 256)
WORKERS = (2, 4)


class Spread(NamedTuple):
    """Connections of the listeners of one port."""

    busiest: float
    """Those of the busiest listener, relative to the mean."""
    idle: float
    """Share of the listeners that have none."""


def spread(num_workers: int, num_connections: int) -> Spread:
    """Opens connections to `num_workers` listeners of one port, and counts them by listener."""
    with ExitStack() as held, selectors.DefaultSelector() as selector:
        port = 0
        for number in range(num_workers):
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(num_connections)
            port = listener.getsockname()[1]
            selector.register(listener, selectors.EVENT_READ, number)
        counts = [0] * num_workers
        for _ in range(num_connections):
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
            [(key, _)] = selector.select(timeout=5.0)
            accepted, _ = key.fileobj.accept()  # type: ignore[union-attr]
            held.enter_context(accepted)
            counts[key.data] += 1
    mean = num_connections / num_workers
    return Spread(max(counts) / mean, counts.count(0) / num_workers)


def report_spread(num_workers: int, num_connections: int, repeats: int) -> str:
    """A line with the means over `repeats` ports."""
    found = [spread(num_workers, num_connections) for _ in range(repeats)]
    busiest = statistics.fmean(each.busiest for each in found)
    idle = statistics.fmean(each.idle for each in found)
    return (
        f"{num_workers} workers, {num_connections:>3} connections: the busiest has {busiest:.2f} "
        f"times the mean, {100 * idle:.0f} % of the workers have none"
    )


class Pods:
    """Some gateways and as many orchestrators, each a process with its own address."""

    def __init__(self, processes: Processes, number: int) -> None:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(number - 1)]
        first = Services(processes, prefix=f"{number} ", engine=FAKE_MODEL)
        engine, tokenizer = first.addresses["inference"], first.addresses["tokenizer"]
        hosts = {"INFERENCE_HOST": engine, "TOKENIZER_HOST": tokenizer}
        first.wait_ready()
        self.orchestrators = [first.addresses["orchestrator"], *addresses]
        self.names = [f"{number} orchestrator", f"{number} gateway"]
        self.urls = []
        for place, address in enumerate(addresses):
            self._start(processes, "orchestrator", f"{number} orchestrator {place}", address, hosts)
        hosts = {"ORCHESTRATOR_HOST": ",".join(self.orchestrators)}
        for place in range(number):
            address = f"127.0.0.1:{free_port()}"
            self._start(processes, "gateway", f"{number} gateway {place}", address, hosts)
            self.urls.append(f"http://{address}")
        self.names.remove(f"{number} gateway")  # knows the first orchestrator only
        self._processes = processes

    def _start(
        self,
        processes: Processes,
        service: str,
        name: str,
        address: str,
        hosts: dict[str, str],
    ) -> None:
        listen = ("--listen", address, "--metrics-listen", "127.0.0.1:0", "--log-level", "WARNING")
        processes.python(name, service, *listen, environment=hosts)
        processes.wait_port(name, int(address.rpartition(":")[2]))
        self.names.append(name)

    async def _load(self, num_streams: int, turns: int) -> int:
        each = num_streams // len(self.urls)
        answers = await asyncio.gather(*(load(url, each, 2, turns) for url in self.urls))
        streams = [stream for streams in answers for stream in streams]
        assert not any(stream.error for stream in streams), streams
        return len(streams)

    def milliseconds(self, num_streams: int, turns: int) -> float:
        """CPU time of a request of two tokens, in gateways and orchestrators."""
        before = self._processes.cpu_seconds(*self.names)
        num_requests = uvloop.run(self._load(num_streams, turns))
        return 1e3 * (self._processes.cpu_seconds(*self.names) - before) / num_requests

    @property
    def mebibytes(self) -> float:
        """Mean resident memory of a process."""
        return self._processes.memory_bytes(*self.names) / len(self.names) / 2**20


def measure_pods(numbers: list[int], rounds: int) -> None:
    """Prints a line for each number of pods, from interleaved turns."""
    with tempfile.TemporaryDirectory() as made, Processes(Path(made) / "log") as processes:
        pods = {number: Pods(processes, number) for number in numbers}
        for each in pods.values():
            each.milliseconds(32, 4)  # warms up
        found: dict[int, list[float]] = {number: [] for number in numbers}
        for _ in range(rounds):
            for number in random.sample(numbers, len(numbers)):
                found[number].append(pods[number].milliseconds(32, 8))
        for number, values in found.items():
            print(
                f"{number} gateways and {number} orchestrators: "
                f"{statistics.median(values):.2f} ms of CPU a request, "
                f"{pods[number].mebibytes:.0f} MiB a process"
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.reuse_port", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--repeats", type=int, default=100, help="ports for each line")
    parser.add_argument("--pods", type=int, nargs="+", help="measure the relay with these numbers")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the relay")
    options = parser.parse_args()
    if options.pods:
        measure_pods(options.pods, options.rounds)
        return
    for num_workers in WORKERS:
        for num_connections in CONNECTIONS:
            print(report_spread(num_workers, num_connections, options.repeats))


if __name__ == "__main__":
    main()
