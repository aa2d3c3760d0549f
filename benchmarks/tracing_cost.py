"""What tracing costs the relay: CPU time per token, with none, without and with an exporter.

    python -m benchmarks.tracing_cost --starts 4 --rounds 20

Five stacks of the four services, with made-up tokens, stand side by side and take turns at the
same load, in an order drawn anew for each round, so that whatever else the machine does hits
all of them, and none always comes after the same other one. CPU time is that of the processes,
from the kernel; the load's and the collector's own do not count. A ratio is of two stacks in the
same round. Two processes of the same code can differ by some percent for as long as they live, so
all are started anew several times, and one mode is there twice: what it adds to itself is what the
method cannot tell from nothing, and the others are compared with the mean of both.

    none       spans taken out of the code (benchmarks.untraced)
    again      the same once more
    no exporter  as services run by default: spans have ids and are not recorded
    exporter   the default sampling: so many traces a second of work are recorded and sent
    everything   an exporter, and every request recorded and sent
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.processes import Processes, free_port
from benchmarks.sse_load import load
from benchmarks.stack import FAKE_MODEL, RELAY, SERVICES, Services
from mesh.sampling import TRACES_PER_SECOND

MODES = ("none", "again", "no exporter", "exporter", "everything")
UNTRACED = ("none", "again")


class Relay(NamedTuple):
    """Four services in one of the modes."""

    mode: str
    services: Services


def start(processes: Processes, mode: str, pace: float, endpoint: str) -> Relay:
    """Starts the services; they may not be ready yet."""
    environment = {}
    if mode in ("exporter", "everything"):
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    if mode == "exporter":
        # A stack works for one turn in so many: else it would save up traces while it rests.
        environment["OTEL_TRACES_SAMPLER_ARG"] = str(TRACES_PER_SECOND / len(MODES))
    if mode == "everything":
        environment["OTEL_TRACES_SAMPLER"] = "parentbased_always_on"
    if mode in UNTRACED:
        environment["OTEL_SDK_DISABLED"] = "true"
    engine = (*FAKE_MODEL, "--fake-tokens-per-second", str(pace))
    run = ("benchmarks.untraced",) if mode in UNTRACED else ()
    services = Services(
        processes, prefix=f"{mode} ", engine=engine, environment=environment, run=run
    )
    return Relay(mode, services)


def measure(relays: list[Relay], options: argparse.Namespace) -> dict[str, list[float]]:
    """Microseconds of CPU per token, by mode, a value a round."""
    found: dict[str, list[float]] = {relay.mode: [] for relay in relays}
    names = SERVICES if options.all else RELAY
    for number in range(-1, options.rounds):  # the first one warms up
        for relay in random.sample(relays, len(relays)):
            before = relay.services.cpu_seconds(names)
            streams = uvloop.run(
                load(relay.services.url, options.streams, options.tokens, options.turns)
            )
            assert not any(stream.error for stream in streams), streams
            used = relay.services.cpu_seconds(names) - before
            if number >= 0:
                found[relay.mode].append(used / sum(s.num_tokens for s in streams) * 1e6)
    return found


def measure_once_started(options: argparse.Namespace) -> dict[str, list[float]]:
    """Starts the stacks, measures all rounds, ends them."""
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "log") as processes:
        port = free_port()
        listen = ("--listen", "127.0.0.1:0", "--grpc-listen", f"127.0.0.1:{port}")
        processes.python("collector", "mesh.traceview", *listen)
        endpoint = f"http://127.0.0.1:{port}"
        modes = random.sample(MODES, len(MODES))
        relays = [start(processes, mode, options.pace, endpoint) for mode in modes]
        for relay in relays:
            relay.services.wait_ready()
        return measure(relays, options)


def report(found: dict[str, list[float]]) -> str:
    """A line a mode: CPU per token, and its ratio to those without, round by round."""
    without = [
        statistics.fmean(pair) for pair in zip(*(found[mode] for mode in UNTRACED), strict=True)
    ]
    lines = [f"{'':<13}{'µs/token, median':>18}{'added, median':>16}{'quartiles':>20}"]
    for mode, values in found.items():
        pairs = zip(values, found["none"] if mode in UNTRACED else without, strict=True)
        added = sorted((value / base - 1) * 100 for value, base in pairs)
        low, middle, high = statistics.quantiles(added, n=4)
        line = f"{mode:<13}{statistics.median(values):>18.1f}"
        if mode != "none":
            line += f"{middle:>15.1f}%{f'{low:.1f}% to {high:.1f}%':>20}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    options = _options()
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(options.starts):
        for mode, values in measure_once_started(options).items():
            found[mode] += values
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(
        f"{options.turns} x {options.streams} streams of {options.tokens} tokens "
        f"at {options.pace:g} a second, {options.starts} x {options.rounds} rounds; "
        f"{os.cpu_count()} cores, load per core {busy:.1f}"
        f"{': busy, read with care' if busy > 1.2 else ''}\n{report(found)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.tracing_cost")
    parser.add_argument("--starts", type=int, default=4, help="of all stacks, each anew")
    parser.add_argument("--rounds", type=int, default=20, help="of each start")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument(
        "--turns", type=int, default=1, help="streams of a connection, one after another"
    )
    parser.add_argument("--pace", type=float, default=100.0, help="tokens per second and stream")
    parser.add_argument("--all", action="store_true", help="count tokenizer and inference too")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    return options


if __name__ == "__main__":
    main()
