"""Instructions per request that tracing adds to the relay, counted with callgrind.

    python -m benchmarks.tracing_instructions     (needs valgrind)

CPU time on a shared machine varies by more than the cost of tracing (benchmarks.tracing_cost);
the number of instructions does not. Gateway and orchestrator run in callgrind, which counts
instructions in user space and is about fifty times slower. It counts only when the services are
ready: at that speed a start takes minutes, and the first calls between the services (the model of
an engine, the readiness of an orchestrator) exceed their limits of 2 to 5 seconds, so that they
were never ready. Turns with and without tracing
(benchmarks.harness.untraced) run in the same processes, in random order. The instructions of
background work, such as health checks, are measured while the services are idle, and subtracted.
The kernel's instructions are not counted, so the ratios are larger than those of the CPU time.

    no exporter  the services' default: spans have ids and are not recorded
    held         the default with an exporter, beyond the rate of sampled traces: spans are
                 recorded, and dropped at the end of the request
    everything   every request is recorded and exported
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.harness.counted import CountedProcesses
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import FAKE_MODEL, RELAY, Services, start_collector
from benchmarks.harness.untraced import Switch
from mesh.observability.recording.sampling import BURST

MODES = ("no exporter", "held", "everything")
IDLE_SECONDS = 10.0

NEVER_SLOW = {
    "GATEWAY_SLOW_FIRST_TOKEN_SECONDS": "3600",
    "GATEWAY_SLOW_REQUEST_SECONDS": "3600",
}
"""At a fiftieth of the speed every request is slow, and its trace would be kept and exported."""


class Round(NamedTuple):
    """Instructions per request, of gateway and orchestrator together."""

    traced: float
    untraced: float
    again: float
    """Untraced a second time; the difference is noise."""


def measure(mode: str, options: argparse.Namespace) -> list[Round]:
    """Runs all rounds of one mode."""
    with (
        tempfile.TemporaryDirectory() as made,
        CountedProcesses(Path(made)) as processes,
    ):
        folder = Path(made)
        environment = {}
        if mode != "no exporter":
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = start_collector(processes)
        if mode == "held":
            environment["OTEL_TRACES_SAMPLER_ARG"] = "0.001"  # the warm-up uses up the burst
            environment |= NEVER_SLOW
        if mode == "everything":
            environment["OTEL_TRACES_SAMPLER"] = "parentbased_always_on"
        switch = Switch(folder / "switch")
        services = Services(
            processes,
            engine=(*FAKE_MODEL, "--fake-tokens-per-second", str(options.pace)),
            environment=environment,
            run=("benchmarks.harness.untraced", str(folder / "switch")),
        )
        services.wait_ready()
        processes.start_counting()

        def turn(name: str, idle_rate: float = 0.0) -> float:
            """Instructions per request, without those of the background work."""
            switch.set(name == "traced")
            began = time.monotonic()
            streams = uvloop.run(load(services.url, options.streams, options.tokens, options.turns))
            assert not any(stream.error for stream in streams), streams
            count = sum(map(processes.instructions, RELAY))
            return (count - idle_rate * (time.monotonic() - began)) / len(streams)

        for _ in range(1 + BURST // (options.streams * options.turns)):
            turn("traced")  # warms up
        time.sleep(IDLE_SECONDS)
        rate = sum(map(processes.instructions, RELAY)) / IDLE_SECONDS
        rounds = []
        for _ in range(options.rounds):
            order = random.sample(Round._fields, len(Round._fields))
            rounds.append(Round(**{name: turn(name, rate) for name in order}))
        return rounds


def report(mode: str, rounds: list[Round]) -> str:
    """A line with the instructions per request, the cost of tracing, and the noise."""
    added = [100 * (each.traced / each.untraced - 1) for each in rounds]
    noise = [100 * (each.again / each.untraced - 1) for each in rounds]
    low, middle, high = statistics.quantiles(added, n=4)
    least, median, most = statistics.quantiles(noise, n=4)
    return (
        f"{mode:<12}{statistics.median(each.untraced for each in rounds) / 1e6:>9.2f} million "
        f"per request; tracing adds {middle:.2f} % ({low:.2f} to {high:.2f}), "
        f"noise {median:.2f} % ({least:.2f} to {most:.2f})"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.tracing_instructions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4, help="concurrent connections")
    parser.add_argument(
        "--turns", type=int, default=16, help="streams of a connection, one after another"
    )
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a stream")
    parser.add_argument(
        "--pace", type=float, default=0.0, help="tokens per second and stream; 0: full speed"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    for mode in options.modes:
        print(report(mode, measure(mode, options)), flush=True)


if __name__ == "__main__":
    main()
