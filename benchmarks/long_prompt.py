"""Measures what a long prompt costs a short one and a running stream, on a CPU.

    python -m benchmarks.long_prompt MODEL_FOLDER [--before ../other-checkout]

Each checkout runs in a process, one after the other, round after round; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.processes import ROOT

SCRIPT = Path(__file__).parent / "harness" / "beside_long_prompt.py"


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One round of a checkout's engine. Raises CalledProcessError if it fails."""
    numbers = (arguments.dtype, arguments.threads, arguments.length)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(arguments.model.resolve()), *map(str, numbers)],
        check=True,
        text=True,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=None if arguments.verbose else subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(arguments.threads)},
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure the checkouts in turn and print the medians."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.long_prompt", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--before", type=Path, help="folder of another checkout to compare with")
    parser.add_argument("--length", type=int, default=7_900, help="tokens of the long prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto", help="type of the weights")
    parser.add_argument("--verbose", action="store_true", help="show the engines' logs")
    arguments = parser.parse_args()
    roots = {"now": ROOT}
    if arguments.before is not None:
        roots = {"before": arguments.before.resolve(), **roots}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in roots}
    for _ in range(arguments.rounds):
        for name, root in roots.items():
            found[name].append(measure(root, arguments))
    for kind in found["now"][0]:
        cells = [
            f"{name} {statistics.median(each[kind] for each in rounds):7.2f} s"
            for name, rounds in found.items()
        ]
        print(f"{kind:<48}{'   '.join(cells)}")


if __name__ == "__main__":
    main()
