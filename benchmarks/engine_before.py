"""Compares this engine with that of another checkout in one run.

    git worktree add ../before COMMIT
    python -m benchmarks.engine_before ../before

Both engines compute the same random weights, each in a separate process, one after the other in a
random order. Figures are medians over the rounds; a ratio is the median of the rounds' ratios, so
that a machine whose speed changes between rounds affects both sides alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import make_model
from benchmarks.engine import MEASURES
from benchmarks.harness.processes import ROOT


def measure(
    root: Path, model: Path, streams: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """Prefill and decode speed of one checkout, in tokens a second.

    Raises CalledProcessError if its engine fails.
    """
    numbers = (streams, arguments.prompt, arguments.output, arguments.threads)
    command = [sys.executable, "-m", "benchmarks.contenders.weir", str(model)]
    done = subprocess.run(
        [*command, *map(str, numbers), arguments.dtype, "auto"],
        check=True,
        text=True,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=None if arguments.verbose else subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(arguments.threads)},
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(model: Path, streams: int, arguments: argparse.Namespace) -> None:
    """Measures both checkouts in turn and prints the medians and the ratio now / before."""
    roots = {"before": arguments.before.resolve(), "now": ROOT}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in roots}
    for _ in range(arguments.rounds):
        for name in random.sample(list(roots), len(roots)):
            found[name].append(measure(roots[name], model, streams, arguments))
    for kind in MEASURES:
        before, now = ([each[kind] for each in found[name]] for name in ("before", "now"))
        low, middle, high = statistics.quantiles(
            [b / a for a, b in zip(before, now, strict=True)], n=4
        )
        print(
            f"{streams:>4} streams {kind:<26} before {statistics.median(before):8.1f} "
            f"now {statistics.median(now):8.1f} ratio {middle:.3f} ({low:.3f} to {high:.3f})",
            flush=True,
        )


def main() -> None:
    """Compares both checkouts at each number of streams."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.engine_before", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    parser.add_argument("--model", type=Path, help="model folder; default: a random SmolLM2-135M")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="prompt length, in tokens")
    parser.add_argument("--output", type=int, default=128, help="completion length, in tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of one run of each checkout")
    parser.add_argument("--dtype", default="int8", help="type of the weights")
    parser.add_argument("--verbose", action="store_true", help="show the engines' logs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or Path(folder) / "smollm2-135m"
        if arguments.model is None:
            make_model.make(model, "smollm2-135m")
        for streams in arguments.streams:
            compare(model, streams, arguments)


if __name__ == "__main__":
    main()
