"""What tracing costs the relay, counted: instructions per request with it and without.

    python -m benchmarks.tracing_instructions     (needs valgrind)

Time on a shared machine differs by more than tracing costs (benchmarks.tracing_cost). What a
process executes does not: gateway and orchestrator run in callgrind, which counts instructions in
user space, some fifty times as slowly. Streams run one after another on each connection; turns
with spans and turns without (benchmarks.harness.untraced) take place in the same processes, in an
order
drawn anew. What the services do by themselves, such as looking after each other, is counted while
nothing is asked of them and taken off. What the kernel does is left out, and it is the same for
both, so the shares are larger than those of the time.

    no exporter  as services run by default: spans have ids and are not recorded
    everything   an exporter, and every request recorded and sent
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.harness.processes import Processes
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import RELAY, Services, start_collector
from benchmarks.harness.untraced import Switch

MODES = ("no exporter", "everything")
IDLE_SECONDS = 10.0


class Round(NamedTuple):
    """Instructions per request, of gateway and orchestrator together."""

    traced: float
    untraced: float
    again: float
    """Untraced once more: what differs is noise."""


class CountedProcesses(Processes):
    """Those of the relay run in callgrind."""

    def __init__(self, folder: Path) -> None:
        """What they print and what they are counted to have done goes to files in `folder`."""
        super().__init__(folder / "log")
        self._folder = folder

    def _as_started(self, name: str, command: Sequence[str]) -> Sequence[str]:
        if name not in RELAY:
            return command
        out = f"--callgrind-out-file={self._folder / name}.counts"
        return ["valgrind", "--tool=callgrind", "--quiet", out, *command]

    def instructions(self, name: str) -> int:
        """What the process has executed since it was asked last."""
        pid = str(self._processes[name].pid)
        before = set(self._counts(name))
        subprocess.run(["callgrind_control", "--dump", pid], check=True, capture_output=True)
        [counts] = set(self._counts(name)) - before
        found = re.search(r"^(?:totals|summary): (\d+)$", counts.read_text(), re.MULTILINE)
        assert found is not None, f"{counts} has no total"
        return int(found.group(1))

    def _counts(self, name: str) -> list[Path]:
        return list(self._folder.glob(f"{name}.counts.*"))


def measure(mode: str, options: argparse.Namespace) -> list[Round]:
    """The rounds of one mode."""
    with (
        tempfile.TemporaryDirectory() as made,
        CountedProcesses(Path(made)) as processes,
    ):
        folder = Path(made)
        environment = {}
        if mode == "everything":
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = start_collector(processes)
            environment["OTEL_TRACES_SAMPLER"] = "parentbased_always_on"
        switch = Switch(folder / "switch")
        services = Services(
            processes,
            environment=environment,
            run=("benchmarks.harness.untraced", str(folder / "switch")),
        )
        services.wait_ready()

        def turn(name: str, by_themselves: float = 0.0) -> float:
            """Instructions per request, those taken off that are executed each second anyway."""
            switch.set(name == "traced")
            began = time.monotonic()
            streams = uvloop.run(load(services.url, options.streams, options.tokens, options.turns))
            assert not any(stream.error for stream in streams), streams
            count = sum(map(processes.instructions, RELAY))
            return (count - by_themselves * (time.monotonic() - began)) / len(streams)

        turn("traced")  # warms up
        time.sleep(IDLE_SECONDS)
        rate = sum(map(processes.instructions, RELAY)) / IDLE_SECONDS
        rounds = []
        for _ in range(options.rounds):
            order = random.sample(Round._fields, len(Round._fields))
            rounds.append(Round(**{name: turn(name, rate) for name in order}))
        return rounds


def report(mode: str, rounds: list[Round]) -> str:
    """A line: instructions of a request, what tracing adds, and what nothing adds."""
    added = [100 * (each.traced / each.untraced - 1) for each in rounds]
    nothing = [100 * (each.again / each.untraced - 1) for each in rounds]
    low, middle, high = statistics.quantiles(added, n=4)
    least, median, most = statistics.quantiles(nothing, n=4)
    return (
        f"{mode:<12}{statistics.median(each.untraced for each in rounds) / 1e6:>9.2f} million "
        f"a request; tracing adds {middle:.2f} % ({low:.2f} to {high:.2f}), "
        f"nothing {median:.2f} % ({least:.2f} to {most:.2f})"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.tracing_instructions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4, help="connections at once")
    parser.add_argument("--turns", type=int, default=16, help="streams of each, one after another")
    parser.add_argument("--tokens", type=int, default=200, help="of a stream")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    for mode in options.modes:
        print(report(mode, measure(mode, options)), flush=True)


if __name__ == "__main__":
    main()
