"""Compares this engine with that of another checkout in one run.

    git worktree add ../before COMMIT
    python -m benchmarks.engine_before ../before

Both engines compute the same random weights in two processes that live side by side and work one
after the other, in a random order. Figures are medians over all rounds; a ratio is the median of
the rounds' ratios, so that a machine whose speed changes between rounds affects both sides alike.
The processes are started again several times, because the same code differs between two starts
(by up to 15 % at one stream, which is bound by memory).
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

SCRIPT = Path(__file__).parent / "harness" / "repeated_engine.py"


class EngineProcess:
    """A process with the engine of one checkout; `with` ends it."""

    def __init__(
        self, root: Path, model: Path, streams: int, arguments: argparse.Namespace
    ) -> None:
        numbers = (streams, arguments.prompt, arguments.output, arguments.threads)
        command = [sys.executable, str(SCRIPT), str(model), *map(str, numbers)]
        self._process = subprocess.Popen(
            [*command, arguments.dtype, "auto"],
            text=True,
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "OMP_NUM_THREADS": str(arguments.threads),
            },
        )
        self._read()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def measure(self) -> tuple[float, float]:
        """Speed of prefill and of decode, in tokens a second. Raises RuntimeError if it fails."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        prefill, decode = json.loads(self._read())
        return prefill, decode

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine of {self._process.args} ended with an error")
        return line


def measure_both(
    model: Path, streams: int, arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Measures both checkouts in turn, in random order, and again with new processes."""
    roots = {"before": arguments.before.resolve(), "now": ROOT}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in roots}
    for _ in range(arguments.starts):
        with (
            EngineProcess(roots["before"], model, streams, arguments) as before,
            EngineProcess(roots["now"], model, streams, arguments) as now,
        ):
            processes = {"before": before, "now": now}
            for _ in range(arguments.rounds):
                for name in random.sample(list(roots), len(roots)):
                    found[name].append(processes[name].measure())
    return found


def compare(model: Path, streams: int, arguments: argparse.Namespace) -> None:
    """Measures both checkouts and prints the medians and the ratio now / before."""
    found = measure_both(model, streams, arguments)
    for index, kind in enumerate(MEASURES):
        before, now = ([each[index] for each in found[name]] for name in ("before", "now"))
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{streams:>4} streams {kind:<26} before {statistics.median(before):8.1f} "
            f"now {statistics.median(now):8.1f} ratio {middle:.3f} ({low:.3f} to {high:.3f}) "
            f"of medians {statistics.median(now) / statistics.median(before):.3f}",
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
    parser.add_argument("--rounds", type=int, default=5, help="rounds of one run of each checkout")
    parser.add_argument("--starts", type=int, default=4, help="how often both processes start")
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
