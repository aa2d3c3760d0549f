"""Cost of the relay: gateway and orchestrator between a client and the fake engine.

    python -m benchmarks.relay --out docs/benchmarks/relay.json
    python -m benchmarks.relay --contenders smg litellm --streams 1 32 256 --rounds 5

A raw HTTP client on the same cores reads streams that all start at once. At full speed the engine
emits tokens as fast as they are read; paced, all streams get a token every 25 ms in one step, as
from a real engine. The CPU time is that of gateway and orchestrator, from the kernel;
the memory is their growth while the streams run.

`--contenders` measures other relays on the same engine in each round (`make smg`, `make litellm`).
They encode prompts themselves, so the tokenizer's CPU time is then counted to Weir's.
`--every-token` lets the engine send one message for each stream and step; relays may still join
what arrives together. Events a token show how much each of them does.
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

from benchmarks.contenders.relays import CONTENDERS, WEIR, Relay, WeirRelay
from benchmarks.harness.percentile import percentile
from benchmarks.harness.processes import Processes
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import FAKE_MODEL, RELAY, Services

PACES = {"full speed": 0.0, "paced": 40.0}
MIN_TOKENS = 20_000
"""Tokens of a measurement, at least: it repeats its streams; paced ones at most twice."""

LIMITS = {
    "orchestrator": ("--max-concurrent-requests", "2048", "--max-outstanding-tokens", "4000000"),
}

Row = dict[str, float | str]


class Peak:
    """Peak memory of a relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
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
            self.bytes = max(self.bytes, self._relay.memory_bytes())


def measure(relay: Relay, num_streams: int, num_tokens: int, max_turns: int) -> Row:
    """Measures one number of streams once."""
    turns = max(1, min(max_turns, MIN_TOKENS // (num_streams * num_tokens)))
    before, memory, began = relay.cpu_seconds(), relay.memory_bytes(), time.perf_counter()
    peak = Peak(relay)
    with peak.watching():
        streams = uvloop.run(load(relay.url, num_streams, num_tokens, turns))
    seconds = time.perf_counter() - began
    total = sum(stream.num_tokens for stream in streams) or 1
    used = {name: value - before[name] for name, value in relay.cpu_seconds().items()}
    return {
        "streams": num_streams,
        "tokens_per_second": total / seconds,
        "ttft_p50_ms": 1e3 * percentile([s.ttft for s in streams], 50),
        "ttft_p99_ms": 1e3 * percentile([s.ttft for s in streams], 99),
        "cpu_us_per_token": sum(used.values()) / total * 1e6,
        "events_per_token": sum(stream.num_events for stream in streams) / total,
        "memory_kib_per_stream": max(0, peak.bytes - memory) / num_streams / 1024,
        "errors": sum(bool(stream.error) for stream in streams),
        **{f"{name}_us_per_token": value / total * 1e6 for name, value in used.items()},
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
        "| pace | streams | relay | tokens/s | TTFT p50 / p99 ms | CPU µs/token | events/token "
        "| KiB/stream | errors |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        "| {pace} | {streams:.0f} | {relay} | {tokens_per_second:,.0f} | {ttft_p50_ms:.1f} / "
        "{ttft_p99_ms:.1f} | {cpu_us_per_token:.1f} | {events_per_token:.2f} "
        "| {memory_kib_per_stream:.0f} | {errors:.0f} |".format(**row)
        for row in rows
    ]
    return "\n".join(lines)


def start(processes: Processes, arguments: argparse.Namespace) -> dict[str, dict[str, Relay]]:
    """Starts the services once for each pace, with the contenders, and warms them up."""
    stacks = {}
    engine = (*FAKE_MODEL, *(("--max-messages-per-second", "0") if arguments.every_token else ()))
    for pace in arguments.paces:
        speed = ("--fake-tokens-per-second", str(PACES[pace]))
        stacks[pace] = Services(
            processes, prefix=f"{pace} ", engine=(*engine, *speed), limits=LIMITS
        )
    relays: dict[str, dict[str, Relay]] = {}
    counted = (*RELAY, "tokenizer") if arguments.contenders else RELAY
    for pace, services in stacks.items():
        services.wait_ready()
        relays[pace] = {WEIR: WeirRelay(services, counted)}
        for name in arguments.contenders:
            relays[pace][name] = CONTENDERS[name](processes, f"{pace} {name}", services)
        for relay in relays[pace].values():
            asyncio.run(load(relay.url, 32, 20))  # warms up
    return relays


def measure_round(
    stacks: dict[str, dict[str, Relay]], number: int, arguments: argparse.Namespace
) -> list[Row]:
    """Measures every pace, number of streams and relay once, the relays one after another."""
    rows: list[Row] = []
    for pace, relays in stacks.items():
        for num_streams in arguments.streams:
            for name, relay in relays.items():
                row = measure(relay, num_streams, arguments.tokens, 2 if PACES[pace] else 20)
                rows.append({"pace": pace, "relay": name, **row})
                print(
                    f"round {number}, {pace}, {num_streams} streams, {name}: "
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
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[])
    parser.add_argument(
        "--every-token", action="store_true", help="the engine sends a message for each token"
    )
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
            stacks = start(processes, arguments)
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
