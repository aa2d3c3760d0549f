"""This relay against that of another checkout, or of another Python, in one run.

    git worktree add ../before COMMIT
    python -m benchmarks.relay_before ../before
    python -m benchmarks.relay_before . --python ../other-environment/bin/python

Both stand ready at the same time, and turns of the same streams go to one and then to the other,
in an order drawn anew. A machine that others use as well can be twice as fast a minute later, but
hardly so between two turns: what counts is the median of their ratios.
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
    """What the same streams cost once."""

    ttft_p50_ms: float
    cpu_us_per_token: float
    """Of gateway and orchestrator."""


def turn(services: Services, num_streams: int, num_tokens: int, repeats: int) -> Turn:
    """So many streams at once, each repeated."""
    before = services.cpu_seconds()
    streams = uvloop.run(load(services.url, num_streams, num_tokens, repeats))
    assert not any(stream.error for stream in streams), streams
    used = services.cpu_seconds() - before
    ttft = percentile([stream.ttft for stream in streams], 50)
    return Turn(1e3 * ttft, 1e6 * used / (len(streams) * num_tokens))


def ratios(before: list[Turn], now: list[Turn], field: str) -> dict[str, float]:
    """Medians of both, and of the ratios of each pair of turns, with their quartiles."""
    pairs = [(getattr(a, field), getattr(b, field)) for a, b in zip(before, now, strict=True)]
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    was, now_is = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"before": was, "now": now_is, "low": low, "ratio": middle, "high": high}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.relay_before", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("before", type=Path, help="the other checkout's folder")
    parser.add_argument("--python", default=sys.executable, help="the other one's interpreter")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--rounds", type=int, default=20, help="of two turns, one each")
    parser.add_argument("--pace", choices=PACES, default="full speed")
    parser.add_argument("--out", type=Path, help="where every figure goes, as JSON")
    options = parser.parse_args()
    engine = (*FAKE_MODEL, "--fake-tokens-per-second", str(PACES[options.pace]))
    rows = []
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "log") as processes:
        other = (options.before.resolve(), options.python)
        relays = {
            name: Services(
                processes,
                prefix=f"{name} ",
                engine=engine,
                limits=LIMITS,
                root=root,
                executable=executable,
            )
            for name, (root, executable) in {"before": other, "now": (ROOT, sys.executable)}.items()
        }
        for services in relays.values():
            services.wait_ready()
            uvloop.run(load(services.url, 32, 20))  # warms up
        for num_streams in options.streams:
            turns: dict[str, list[Turn]] = {name: [] for name in relays}
            repeats = max(1, 8 // num_streams)
            for _ in range(options.rounds):
                for name in random.sample(list(relays), len(relays)):
                    made = turn(relays[name], num_streams, options.tokens, repeats)
                    turns[name].append(made)
            for field in Turn._fields:
                found = ratios(turns["before"], turns["now"], field)
                rows.append({"streams": num_streams, "figure": field, **found})
                print(
                    "{streams:>5} streams {figure:<17} before {before:8.1f} now {now:8.1f} "
                    "ratio {ratio:.3f} ({low:.3f} to {high:.3f})".format(**rows[-1]),
                    flush=True,
                )
    if options.out:
        options.out.write_text(json.dumps({"pace": options.pace, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
