"""Compares this relay with that of another checkout, or under another Python, in one run.

    git worktree add ../before COMMIT
    python -m benchmarks.relay_before ../before
    python -m benchmarks.relay_before . --python ../other-environment/bin/python

Both stacks run at the same time, and turns of the same load alternate between them in random order.
The speed of a shared machine can double within a minute, but hardly between two turns: the result
is the median of the ratios of paired turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.harness.percentile import percentile
from benchmarks.harness.processes import ROOT, Processes
from benchmarks.harness.sse_load import load
from benchmarks.harness.stack import FAKE_MODEL, Services
from benchmarks.relay import LIMITS, PACES


class Turn(NamedTuple):
    """Figures of one turn."""

    ttft_p50_ms: float
    cpu_us_per_token: float
    """CPU time of gateway and orchestrator."""


def turn(services: Services, num_streams: int, num_tokens: int, repeats: int) -> Turn:
    """Runs `num_streams` concurrent connections, each with `repeats` streams one after another."""
    before = services.cpu_seconds()
    streams = uvloop.run(load(services.url, num_streams, num_tokens, repeats))
    assert not any(stream.error for stream in streams), streams
    used = services.cpu_seconds() - before
    ttft = percentile([stream.ttft for stream in streams], 50)
    return Turn(1e3 * ttft, 1e6 * used / (len(streams) * num_tokens))


def ratios(before: list[Turn], now: list[Turn], field: str) -> dict[str, float]:
    """Medians of both sides; the median and the quartiles of the ratios of paired turns."""
    pairs = [(getattr(a, field), getattr(b, field)) for a, b in zip(before, now, strict=True)]
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    was, now_is = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"before": was, "now": now_is, "low": low, "ratio": middle, "high": high}


def start(processes: Processes, options: argparse.Namespace) -> dict[str, Services]:
    """Starts both relays, `before` and `now`, and warms them up."""
    engine = (*FAKE_MODEL, "--fake-tokens-per-second", str(PACES[options.pace]))
    checkouts = {
        "before": (options.before.resolve(), options.python),
        "now": (ROOT, sys.executable),
    }
    relays = {
        name: Services(
            processes,
            prefix=f"{name} ",
            engine=engine,
            limits=LIMITS,
            root=root,
            executable=executable,
        )
        for name, (root, executable) in checkouts.items()
    }
    for services in relays.values():
        services.wait_ready()
        uvloop.run(load(services.url, 32, 20))  # warms up
    return relays


Turns = dict[int, dict[str, list[Turn]]]
"""Turns of each checkout, by number of streams."""


def run_rounds(relays: dict[str, Services], options: argparse.Namespace, turns: Turns) -> None:
    """Adds the turns of one start of the processes."""
    for num_streams in options.streams:
        repeats = max(1, 8 // num_streams)
        for _ in range(options.rounds):
            for name in random.sample(list(relays), len(relays)):
                made = turn(relays[name], num_streams, options.tokens, repeats)
                turns[num_streams][name].append(made)


def summarise(turns: Turns) -> list[dict[str, object]]:
    """Prints and returns a row for each number of streams and figure."""
    rows: list[dict[str, object]] = []
    for num_streams, by_name in turns.items():
        for field in Turn._fields:
            found = ratios(by_name["before"], by_name["now"], field)
            rows.append({"streams": num_streams, "figure": field, **found})
            print(
                "{streams:>5} streams {figure:<17} before {before:8.1f} now {now:8.1f} "
                "ratio {ratio:.3f} ({low:.3f} to {high:.3f})".format(**rows[-1]),
                flush=True,
            )
    return rows


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.relay_before", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the other relay")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 32, 256], help="numbers of streams"
    )
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a stream")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of one turn each")
    parser.add_argument(
        "--starts",
        type=int,
        default=1,
        help="how often the processes are started; each start has the given rounds, and the same "
        "code differs by up to 5 %% between starts",
    )
    parser.add_argument("--pace", choices=PACES, default="full speed", help="pace of the engine")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    return parser.parse_args()


def main() -> None:
    """Compares both relays at each number of streams, and writes the figures to `--out`."""
    options = parse_options()
    turns: Turns = {number: {"before": [], "now": []} for number in options.streams}
    for _ in range(options.starts):
        with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "log") as processes:
            run_rounds(start(processes, options), options, turns)
    rows = summarise(turns)
    if options.out:
        options.out.write_text(json.dumps({"pace": options.pace, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
