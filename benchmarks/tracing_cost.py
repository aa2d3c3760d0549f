"""CPU time per token that tracing adds to the relay.

    python -m benchmarks.tracing_cost --starts 3 --rounds 20

Three stacks of the four services, with the fake engine, run side by side and take turns at the
same load. Each can switch its tracing off (benchmarks.harness.untraced), and has three turns a
round in random order: `with` tracing, `without`, and without `again`. The CPU time is that of
gateway and orchestrator, from the kernel. The cost of tracing is a ratio of turns of the same
process and round; the ratio of the two turns without tracing is the noise of the method.

    no exporter  the services' default: spans have ids and are not recorded
    exporter     the default sampling: a limited number of traces a second is recorded and exported
    everything   every request is recorded and exported
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
from mesh.observability.recording.sampling import TRACES_PER_SECOND

MODES = ("no exporter", "exporter", "everything")
TURNS = ("with", "without", "again")


class Relay(NamedTuple):
    """The four services in one of the modes."""

    mode: str
    services: Services
    switch: Switch


Round = dict[str, float]
"""Microseconds of CPU per token, by turn."""


def start(processes: Processes, mode: str, options: argparse.Namespace, folder: Path) -> Relay:
    """Starts the services without waiting until they are ready."""
    environment = {}
    if mode != "no exporter":
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = options.endpoint
    if mode == "exporter":
        # A stack traces in one turn of nine; its rate limiter must not accumulate traces meanwhile.
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
    """Runs all rounds; returns them by mode."""
    found: dict[str, list[Round]] = {relay.mode: [] for relay in relays}
    names = SERVICES if options.all else RELAY
    for number in range(-1, options.rounds):  # round -1 warms up
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
    """Starts the stacks, measures all rounds, and ends the stacks."""
    with tempfile.TemporaryDirectory() as made, Processes(Path(made) / "log") as processes:
        options.endpoint = start_collector(processes)
        relays = [start(processes, mode, options, Path(made)) for mode in MODES]
        for relay in relays:
            relay.services.wait_ready()
        return measure(relays, options)


def report(found: dict[str, list[Round]]) -> str:
    """A line for each mode, and one for the noise."""
    lines = [f"{'':<13}{'µs/token, median':>18}{'added, median':>16}{'quartiles':>20}"]
    for mode, rounds in found.items():
        # The mean of both turns without tracing has less noise than either.
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
        f"{': the machine is busy, results are unreliable' if busy > 1.2 else ''}\n{report(found)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.tracing_cost")
    parser.add_argument("--starts", type=int, default=3, help="starts of all stacks")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each start")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument(
        "--turns", type=int, default=1, help="streams of a connection, one after another"
    )
    parser.add_argument("--pace", type=float, default=100.0, help="tokens per second and stream")
    parser.add_argument("--all", action="store_true", help="include tokenizer and inference")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    return options


if __name__ == "__main__":
    main()
