"""The engine on a GPU, beside the device's own limits and transformers' continuous batching.

    python -m benchmarks.gpu --out docs/benchmarks/gpu.json

Measures the device's bandwidth and matrix rate, makes a random model of Llama-3.1-8B's shape on
it, then has this engine and transformers decode with 1, 32 and 256 streams and prefill prompts of
2,048 tokens: the same weights, prompts and numbers of tokens. The engine does so twice, the second
time with kernels whose results no other sequence has a say in, as for requests with a seed. Each
contender runs in a process of its own, one after another, round after round, so that each has the
device alone. Figures are medians over the rounds, ratios medians of each round's ratio.
benchmarks/accelerator/roofline.py has the formulas of the limits, workload.py says which of a
stream's tokens count.

transformers decodes by far faster with flash attention, and takes it where `flash-attn` is
installed; the run says what it took.

`--device cpu --shape tiny` runs the same code where there is no GPU. Its figures say nothing of
one. The exit status is 2 where the device is missing, 1 where a contender failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import make_model
from benchmarks.accelerator import summary
from benchmarks.accelerator.probe import Probe
from benchmarks.accelerator.roofline import BYTES_OF_WEIGHT
from benchmarks.accelerator.workload import Workload
from inference.engine.errors import ModelLoadError
from inference.model.config import load_config
from inference.runner.invariance import Invariance

NO_DEVICE = (
    "no CUDA device was found; the figures need one. "
    "--device cpu --shape tiny only shows that the script runs"
)
GOALS_SHAPE = "llama-3.1-8b"
BUFFER_MIB = {"cuda": 4096, "cpu": 256}
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
INVARIANCES = {
    "cuda": {"": Invariance.NONE, ", invariant": Invariance.ALL},
    "cpu": {"": Invariance.NONE},
}
"""Of steps without seeded requests, and of those with them, where that makes a difference."""

DTYPES = {"cuda": ("bfloat16", "fp8"), "cpu": ("bfloat16",)}


class Failed(Exception):
    """A process ended badly; its own last words."""


def call(module: str, *arguments: str, verbose: bool) -> str:
    """What the module's process printed. Raises Failed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.PIPE,
    )
    if done.returncode:
        words = (done.stderr or "").strip().splitlines() or ["see above"]
        raise Failed(f"{module} ended with {done.returncode}: {words[-1]}")
    return done.stdout


def call_json(module: str, *arguments: str, verbose: bool) -> dict[str, Any]:
    """The JSON of its last line. Raises Failed."""
    found: dict[str, Any] = json.loads(
        call(module, *arguments, verbose=verbose).strip().splitlines()[-1]
    )
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 where it asks for what is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=sorted(make_model.SHAPES), default=GOALS_SHAPE)
    parser.add_argument("--model", type=Path, help="a folder, instead of a random model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a decoding stream")
    parser.add_argument("--output", type=int, default=128, help="tokens of a decoding stream")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of a prompt to prefill")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline-rounds", type=int, help="with transformers; all, if not given")
    parser.add_argument("--dtype", nargs="+", choices=sorted(BYTES_OF_WEIGHT), help="the engine's")
    parser.add_argument("--attention", default="auto", help="transformers', such as sdpa")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--buffer-mib", type=int, help="to measure the bandwidth with")
    parser.add_argument("--matrix", type=int, help="rows and columns to measure the rate with")
    parser.add_argument("--out", type=Path, help="where to write all measurements as JSON")
    parser.add_argument("--verbose", action="store_true", help="let contenders write their logs")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, f"{parser.prog}: {NO_DEVICE}\n")
    if options.model is not None:
        try:
            load_config(options.model)
        except ModelLoadError as error:
            parser.error(f"--model: {error}")
    options.dtype = options.dtype or list(DTYPES[options.device])
    if options.baseline_rounds is None:
        options.baseline_rounds = options.rounds
    options.buffer_mib = options.buffer_mib or BUFFER_MIB[options.device]
    options.matrix = options.matrix or MATRIX_SIZE[options.device]
    return options


def workload(options: argparse.Namespace, folder: Path, seed: int) -> Workload:
    """What one round asks for."""
    return Workload(
        folder=str(folder),
        device=options.device,
        streams=tuple(options.streams),
        prompt_length=options.prompt,
        output_length=options.output,
        prefill_length=options.prefill,
        seed=seed,
    )


class Measured(NamedTuple):
    """What the rounds gave."""

    rounds: list[dict[str, dict[str, float]]]
    """For each round, by contender and by row, tokens a second."""
    about: dict[str, str]
    """Versions and ways, by contender."""
    failures: dict[str, str]
    """Why a contender has no figures from some round on."""


def measure(
    options: argparse.Namespace, folder: Path, contenders: Mapping[str, tuple[str, str]]
) -> Iterator[Measured]:
    """Every contender in turn, round after round; one that fails is left out from then on.

    Gives all that is known after each round.
    """
    found = Measured([], {}, {})
    for number in range(options.rounds):
        asked = workload(options, folder, number).to_json()
        found.rounds.append({})
        for name, (module, argument) in contenders.items():
            left_out = name == summary.BASELINE and number >= options.baseline_rounds
            if left_out or name in found.failures:
                continue
            try:
                said = call_json(module, asked, argument, verbose=options.verbose)
            except Failed as failure:
                found.failures[name] = str(failure)
                print(f"round {number + 1}, {name}: {failure}", flush=True)
                continue
            found.rounds[-1][name], found.about[name] = said["figures"], said["about"]
            figures = "; ".join(f"{row} {rate:,.0f}" for row, rate in said["figures"].items())
            print(f"round {number + 1}, {name}: {figures}", flush=True)
        yield found


def run(options: argparse.Namespace, folder: Path, probe: Probe) -> int:
    """All rounds and the table; returns the exit status."""
    contenders = {
        f"weir {dtype}{suffix}": ("accelerator.weir", f"{dtype} {invariance.value}")
        for dtype in options.dtype
        for suffix, invariance in INVARIANCES[options.device].items()
    }
    dtypes = {name: argument.split()[0] for name, (_, argument) in contenders.items()}
    if not options.without_transformers:
        arguments = ("accelerator.transformers_batching", options.attention)
        contenders[summary.BASELINE] = arguments
        dtypes[summary.BASELINE] = summary.BASELINE_DTYPE
    config = load_config(folder)
    asked = workload(options, folder, 0)
    goals = options.device == "cuda" and options.model is None and options.shape == GOALS_SHAPE
    for measured in measure(options, folder, contenders):
        rows = summary.lines(measured.rounds, dtypes, config, probe, asked, with_goals=goals)
        if options.out:  # after each round: a rented GPU may be gone before the last one
            _write(options, probe, measured, rows)
    print("\n".join(["", *summary.describe(probe), *summary.table(rows), ""]))
    for name, words in measured.about.items():
        print(f"{name}: {words}")
    return 1 if measured.failures else 0


def _write(
    options: argparse.Namespace, probe: Probe, measured: Measured, rows: Sequence[summary.Line]
) -> None:
    report = {
        "device": probe._asdict(),
        "shape": str(options.model or options.shape),
        "prompt": options.prompt,
        "output": options.output,
        **measured._asdict(),
        "rows": [row.to_dict() for row in rows],
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = parse(arguments)
    device = (options.device, str(options.buffer_mib), str(options.matrix))
    try:
        probe = Probe(**call_json("accelerator.probe", *device, verbose=options.verbose))
        print("\n".join(summary.describe(probe)), flush=True)
        with tempfile.TemporaryDirectory() as made:
            folder = options.model
            if folder is None:
                folder = Path(made)
                asked = ("--shape", options.shape, "--out", made, "--device", options.device)
                print(call("make_model", *asked, verbose=options.verbose).strip(), flush=True)
            return run(options, folder, probe)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
