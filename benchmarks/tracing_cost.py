"""What tracing costs the relay: CPU time per token with it, against the same services without.

    python -m benchmarks.tracing_cost --starts 3 --rounds 20

Three stacks of the four services, with made-up tokens, stand side by side and take turns at the
same load. Each can leave its spans out (benchmarks.harness.untraced), and has three turns a
round: with
them, without, and without once more, in an order drawn anew. CPU time is that of gateway and
orchestrator, from the kernel; the load's and the collector's own do not count. What tracing adds
is a ratio of turns in the same process and round; what the third turn adds to the second is what
the method cannot tell from nothing.

    no exporter  as services run by default: spans have ids and are not recorded
    exporter     the default sampling: so many traces a second of work are recorded and sent
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

from benchmarks.harness.processes import Processes
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import FAKE_MODEL, RELAY, SERVICES, Services, start_collector
from benchmarks.harness.untraced import Switch
from mesh.observability.trace_sampling import TRACES_PER_SECOND

MODES = ("no exporter", "exporter", "everything")
TURNS = ("with", "without", "again")


class Relay(NamedTuple):
    """Four services in one of the modes."""

    mode: str
    services: Services
    switch: Switch


Round = dict[str, float]
"""Microseconds of CPU per token, by turn."""


def start(processes: Processes, mode: str, options: argparse.Namespace, folder: Path) -> Relay:
    """Starts the services; they may not be ready yet."""
    environment = {}
    if mode != "no exporter":
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = options.endpoint
    if mode == "exporter":
        # A stack is traced for one turn in so many: else it would save up traces meanwhile.
        share = 1 / len(MODES) / len(TURNS)
        environment["OTEL_TRACES_SAMPLER_ARG"] = str(TRACES_PER_SECOND * share)
    if mode == "everything":
        environment["OTEL_TRACES_SAMPLER"] = "parentbased_always_on"
    path = folder / mode
    switch = Switch(path)
    services = Services(
        processes,
        prefix=f"{mode} ",
        engine=(*FAKE_MODEL, "--fake-tokens-per-second", str(options.pace)),
        environment=environment,
        run=("benchmarks.harness.untraced", str(path)),
    )
    return Relay(mode, services, switch)


def measure(relays: list[Relay], options: argparse.Namespace) -> dict[str, list[Round]]:
    """The rounds of each mode."""
    found: dict[str, list[Round]] = {relay.mode: [] for relay in relays}
    names = SERVICES if options.all else RELAY
    for number in range(-1, options.rounds):  # the first one warms up
        for relay in random.sample(relays, len(relays)):
            used: Round = {}
            for turn in random.sample(TURNS, len(TURNS)):
                relay.switch.set(turn == "with")
                before = relay.services.cpu_seconds(names)
                streams = uvloop.run(
                    load(relay.services.url, options.streams, options.tokens, options.turns)
                )
                assert not any(stream.error for stream in streams), streams
                cpu = relay.services.cpu_seconds(names) - before
                used[turn] = cpu / sum(stream.num_tokens for stream in streams) * 1e6
            if number >= 0:
                found[relay.mode].append(used)
    return found


def measure_once_started(options: argparse.Namespace) -> dict[str, list[Round]]:
    """Starts the stacks, measures all rounds, ends them."""
    with tempfile.TemporaryDirectory() as made, Processes(Path(made) / "log") as processes:
        options.endpoint = start_collector(processes)
        relays = [start(processes, mode, options, Path(made)) for mode in MODES]
        for relay in relays:
            relay.services.wait_ready()
        return measure(relays, options)


def report(found: dict[str, list[Round]]) -> str:
    """A line a mode, and one of all turns without."""
    lines = [f"{'':<13}{'µs/token, median':>18}{'added, median':>16}{'quartiles':>20}"]
    for mode, rounds in found.items():
        # The mean of both turns without: less noise than either.
        added = [r["with"] / statistics.fmean((r["without"], r["again"])) for r in rounds]
        lines.append(_line(mode, [r["with"] for r in rounds], added))
    every = [each for rounds in found.values() for each in rounds]
    control = [each["again"] / each["without"] for each in every]
    lines.append(_line("without", [each["without"] for each in every], control))
    return "\n".join(lines)


def _line(name: str, values: list[float], ratios: list[float]) -> str:
    low, middle, high = ((ratio - 1) * 100 for ratio in statistics.quantiles(ratios, n=4))
    quartiles = f"{low:.1f}% to {high:.1f}%"
    return f"{name:<13}{statistics.median(values):>18.1f}{middle:>15.1f}%{quartiles:>20}"


def main() -> None:
    """The command line."""
    options = _options()
    found: dict[str, list[Round]] = {mode: [] for mode in MODES}
    for _ in range(options.starts):
        for mode, rounds in measure_once_started(options).items():
            found[mode] += rounds
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(
        f"{options.turns} x {options.streams} streams of {options.tokens} tokens "
        f"at {options.pace:g} a second, {options.starts} x {options.rounds} rounds; "
        f"{os.cpu_count()} cores, load per core {busy:.1f}"
        f"{': busy, read with care' if busy > 1.2 else ''}\n{report(found)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.tracing_cost")
    parser.add_argument("--starts", type=int, default=3, help="of all stacks, each anew")
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
