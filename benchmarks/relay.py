"""Cost of the relay: gateway and orchestrator between a client and the fake engine.

    python -m benchmarks.relay --out docs/benchmarks/relay.json

A raw HTTP client on the same cores reads streams that all start at once. At full speed the engine
emits tokens as fast as they are read; paced, all streams get a token every 25 ms in one step, as
from a real engine. The CPU time is that of gateway and orchestrator, from the kernel;
the memory is their growth while the streams run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop

from benchmarks.harness.percentile import percentile
from benchmarks.harness.processes import Processes
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import FAKE_MODEL, RELAY, SERVICES, Services

PACES = {"full speed": 0.0, "paced": 40.0}
MIN_TOKENS = 20_000
"""Tokens of a measurement, at least: it repeats its streams; paced ones at most twice."""

LIMITS = {
    "orchestrator": ("--max-concurrent-requests", "2048", "--max-outstanding-tokens", "4000000"),
}

Row = dict[str, float | str]


class Peak:
    """Peak memory of the services."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._stop = threading.Event()
        self.bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Samples the memory ten times a second while the block runs."""
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.bytes = max(self.bytes, self._services.memory_bytes())


def measure(services: Services, num_streams: int, num_tokens: int, max_turns: int) -> Row:
    """Measures one number of streams once."""
    turns = max(1, min(max_turns, MIN_TOKENS // (num_streams * num_tokens)))
    cpu, memory, began = services.cpu_seconds(), services.memory_bytes(), time.perf_counter()
    by_name = {name: services.cpu_seconds((name,)) for name in SERVICES}
    peak = Peak(services)
    with peak.watching():
        streams = uvloop.run(load(services.url, num_streams, num_tokens, turns))
    seconds = time.perf_counter() - began
    total = sum(stream.num_tokens for stream in streams) or 1
    used = services.cpu_seconds() - cpu
    each = {n: (services.cpu_seconds((n,)) - b) / total * 1e6 for n, b in by_name.items()}
    return {
        "streams": num_streams,
        "tokens_per_second": total / seconds,
        "ttft_p50_ms": 1e3 * percentile([s.ttft for s in streams], 50),
        "ttft_p99_ms": 1e3 * percentile([s.ttft for s in streams], 99),
        "cpu_us_per_token": used / total * 1e6,
        "memory_kib_per_stream": max(0, peak.bytes - memory) / num_streams / 1024,
        "errors": sum(bool(stream.error) for stream in streams),
        **{f"{name}_us_per_token": value for name, value in each.items()},
    }


def median_rows(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """Medians of all figures over the rounds, and the sum of errors, by pace and streams."""
    merged: list[Row] = []
    for same in zip(*rounds, strict=True):
        row: Row = {}
        for key, first in same[0].items():
            if isinstance(first, str):
                row[key] = first
            else:
                values = [float(each[key]) for each in same]
                row[key] = sum(values) if key == "errors" else statistics.median(values)
        merged.append(row)
    return merged


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| pace | streams | tokens/s | TTFT p50 / p99 ms | CPU µs/token, both "
        "| gateway | orchestrator | KiB/stream | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        "| {pace} | {streams:.0f} | {tokens_per_second:,.0f} | {ttft_p50_ms:.1f} / "
        "{ttft_p99_ms:.1f} | {cpu_us_per_token:.1f} | {gateway_us_per_token:.1f} "
        "| {orchestrator_us_per_token:.1f} | {memory_kib_per_stream:.0f} | {errors:.0f} |".format(
            **row
        )
        for row in rows
    ]
    return "\n".join(lines)


def start(processes: Processes, paces: Sequence[str]) -> dict[str, Services]:
    """Starts the services once for each pace, and warms them up."""
    stacks = {}
    for pace in paces:
        engine = (*FAKE_MODEL, "--fake-tokens-per-second", str(PACES[pace]))
        stacks[pace] = Services(processes, prefix=f"{pace} ", engine=engine, limits=LIMITS)
    for services in stacks.values():
        services.wait_ready()
        asyncio.run(load(services.url, 32, 20))  # warms up
    return stacks


def measure_round(
    stacks: dict[str, Services], number: int, arguments: argparse.Namespace
) -> list[Row]:
    """Measures every pace and number of streams once."""
    rows: list[Row] = []
    for pace, services in stacks.items():
        for num_streams in arguments.streams:
            row = measure(services, num_streams, arguments.tokens, 2 if PACES[pace] else 20)
            rows.append({"pace": pace, **row})
            print(
                f"round {number}, {pace}, {num_streams} streams: "
                f"{row['tokens_per_second']:,.0f} tokens/s, "
                f"{row['cpu_us_per_token']:.1f} µs/token",
                flush=True,
            )
    return rows


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 32, 256, 1000], help="numbers of streams"
    )
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paces", nargs="+", choices=PACES, default=list(PACES))
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--log", type=Path, help="file for the output of the services")
    return parser.parse_args()


def main() -> None:
    """Runs all rounds, prints the table of medians, and writes the figures to `--out`."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "processes.log"
        with Processes(log) as processes:
            stacks = start(processes, arguments.paces)
            rounds = [
                measure_round(stacks, number + 1, arguments) for number in range(arguments.rounds)
            ]
    rows = median_rows(rounds)
    print(f"\n{platform.machine()}, Python {platform.python_version()}, {' + '.join(RELAY)}")
    print(table(rows))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"rows": rows, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
