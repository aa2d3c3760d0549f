"""What the relay costs: gateway and orchestrator between an engine that costs nothing and a client.

    python -m benchmarks.relay --out docs/benchmarks/relay.json

Streams of made-up tokens, all begun at once, read by a client of raw HTTP on the same cores. Once
at full speed, where the engine gives a token whenever somebody waits for one; once paced, where
every stream gets a token every 25 ms, all of a step together, as a real engine gives them.
CPU time is the two services', from the kernel; memory is what they grew by while streams ran.
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
"""A measurement repeats its streams until there are about so many; paced ones at most twice."""

LIMITS = {
    "orchestrator": ("--max-concurrent-requests", "2048", "--max-outstanding-tokens", "4000000"),
}

Row = dict[str, float | str]


class Peak:
    """The most memory that some services were seen to have."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._stop = threading.Event()
        self.bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks ten times a second while the block runs."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            self.bytes = max(self.bytes, self._services.memory_bytes())


def measure(services: Services, num_streams: int, num_tokens: int, most_turns: int) -> Row:
    """One round at one number of streams."""
    turns = max(1, min(most_turns, MIN_TOKENS // (num_streams * num_tokens)))
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
    """The median of each figure over the rounds, errors summed, by pace and number of streams."""
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
    """The rows in Markdown."""
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256, 1000])
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paces", nargs="+", choices=PACES, default=list(PACES))
    parser.add_argument("--out", type=Path, help="where every figure goes, as JSON")
    parser.add_argument("--log", type=Path, help="where the processes' output goes")
    arguments = parser.parse_args()
    rounds: list[list[Row]] = []
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "processes.log"
        with Processes(log) as processes:
            stacks = {}
            for pace in arguments.paces:
                engine = (*FAKE_MODEL, "--fake-tokens-per-second", str(PACES[pace]))
                stacks[pace] = Services(processes, prefix=f"{pace} ", engine=engine, limits=LIMITS)
            for services in stacks.values():
                services.wait_ready()
                asyncio.run(load(services.url, 32, 20))  # warms up
            for number in range(arguments.rounds):
                rows = []
                for pace, services in stacks.items():
                    for num_streams in arguments.streams:
                        row = measure(
                            services, num_streams, arguments.tokens, 2 if PACES[pace] else 20
                        )
                        rows.append({"pace": pace, **row})
                        print(
                            f"round {number + 1}, {pace}, {num_streams} streams: "
                            f"{row['tokens_per_second']:,.0f} tokens/s, "
                            f"{row['cpu_us_per_token']:.1f} µs/token",
                            flush=True,
                        )
                rounds.append(rows)
    rows = median_rows(rounds)
    print(f"\n{platform.machine()}, Python {platform.python_version()}, {' + '.join(RELAY)}")
    print(table(rows))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"rows": rows, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
