"""Instructions of gateway and orchestrator for an event of a stream, and for a request.

    python -m benchmarks.relay_instructions                    (needs valgrind)
    python -m benchmarks.relay_instructions ../before .

Both services run in callgrind (benchmarks.harness.counted). All streams get a token in one step,
slowly enough for the relay at a fiftieth of its speed, so that each token is an event. An event
costs the difference between long and short streams divided by the difference of their events. The
instructions of background work, such as health checks, are measured while the services are idle,
and subtracted. The kernel's are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import uvloop

from benchmarks.harness.counted import CountedProcesses
from benchmarks.harness.processes import ROOT
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import FAKE_MODEL, RELAY, Services

FEW_TOKENS = 2
IDLE_SECONDS = 8.0

Counts = dict[str, float]
"""Instructions by service."""


class Relay:
    """The services of one checkout."""

    def __init__(self, root: Path, processes: CountedProcesses, options: argparse.Namespace):
        self._processes = processes
        self._streams: int = options.streams
        pace = ("--fake-tokens-per-second", str(options.pace), "--max-messages-per-second", "0")
        self._services = Services(processes, engine=(*FAKE_MODEL, *pace), root=root)
        self._services.wait_ready()
        processes.start_counting()
        self._idle = dict.fromkeys(RELAY, 0.0)

    def _count(self) -> Counts:
        return {name: self._processes.instructions(name) for name in RELAY}

    def measure_idle(self) -> None:
        """Takes the rate of background work."""
        self._count()
        time.sleep(IDLE_SECONDS)
        self._idle = {name: count / IDLE_SECONDS for name, count in self._count().items()}

    def turn(self, num_tokens: int) -> tuple[Counts, int]:
        """Instructions of streams of this length without background work, and their events."""
        began = time.monotonic()
        streams = uvloop.run(load(self._services.url, self._streams, num_tokens))
        assert not any(stream.error for stream in streams), streams
        seconds = time.monotonic() - began
        counts = {name: n - self._idle[name] * seconds for name, n in self._count().items()}
        return counts, sum(stream.num_events for stream in streams)


def measure(root: Path, options: argparse.Namespace) -> str:
    """A line with the medians of all rounds."""
    per_event, per_request = (
        defaultdict[str, list[float]](list),
        defaultdict[str, list[float]](list),
    )
    with tempfile.TemporaryDirectory() as folder, CountedProcesses(Path(folder)) as processes:
        relay = Relay(root, processes, options)
        for _ in range(2):
            relay.turn(5)  # warms up
        relay.measure_idle()
        for _ in range(options.rounds):
            few, num_few = relay.turn(FEW_TOKENS)
            many, num_many = relay.turn(options.tokens)
            for name in RELAY:
                per_event[name].append((many[name] - few[name]) / (num_many - num_few))
                per_request[name].append(few[name] / options.streams)
    parts = [
        f"{name}: {statistics.median(per_event[name]) / 1e3:.1f} thousand an event, "
        f"{statistics.median(per_request[name]) / 1e6:.2f} million a request of {FEW_TOKENS} tokens"
        for name in RELAY
    ]
    return f"{root}\n  " + "\n  ".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.relay_instructions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkouts", type=Path, nargs="*", default=[ROOT], help="folders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16, help="concurrent streams")
    parser.add_argument("--tokens", type=int, default=30, help="tokens of a long stream")
    parser.add_argument("--pace", type=float, default=4.0, help="tokens per second and stream")
    options = parser.parse_args()
    for root in options.checkouts:
        print(measure(root.resolve(), options), flush=True)


if __name__ == "__main__":
    main()
