"""The engine on a GPU, compared with the device's limits and transformers' continuous batching.

    python -m benchmarks.gpu --out docs/benchmarks/gpu.json

Measures the device's bandwidth and matrix rate, and makes a random model of Llama-3.1-8B's shape.
Then this engine and transformers decode with 1, 32 and 256 streams and prefill prompts of 2,048
tokens, with the same weights, prompts and numbers of tokens. The engine runs twice, the second
time with batch-invariant kernels, as for requests with a seed. Each contender runs in a separate
process, one after another, round after round, so that it has the device alone. Figures are
medians over the rounds; ratios are medians of the rounds' ratios.
benchmarks/accelerator/roofline.py has the formulas of the limits; workload.py defines which
tokens of a stream are counted.

transformers decodes much faster with flash attention, and uses it where `flash-attn` is
installed; the output names the attention that it used.

`--device cpu --shape tiny` runs the same code without a GPU; its figures are meaningless. The
exit status is 2 if the device is missing, and 1 if a contender failed.
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
    "no CUDA device was found. To test the script without one, use --device cpu --shape tiny"
)
GOALS_SHAPE = "llama-3.1-8b"
BUFFER_MIB = {"cuda": 4096, "cpu": 256}
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
INVARIANCES = {
    "cuda": {"": Invariance.NONE, ", invariant": Invariance.ALL},
    "cpu": {"": Invariance.NONE},
}
"""Suffix of the contender's name, and the batch invariance of its steps."""

DTYPES = {"cuda": ("bfloat16", "fp8"), "cpu": ("bfloat16",)}


class Failed(Exception):
    """A process failed; the message quotes the last line of its output."""


def call(module: str, *arguments: str, verbose: bool) -> str:
    """Runs a module in a process; returns its output. Raises Failed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.PIPE,
    )
    if done.returncode:
        lines = (done.stderr or "").strip().splitlines() or ["see above"]
        raise Failed(f"{module} ended with {done.returncode}: {lines[-1]}")
    return done.stdout


def call_json(module: str, *arguments: str, verbose: bool) -> dict[str, Any]:
    """Runs a module; returns the JSON in its last line. Raises Failed."""
    found: dict[str, Any] = json.loads(
        call(module, *arguments, verbose=verbose).strip().splitlines()[-1]
    )
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 if the device or the model is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=sorted(make_model.SHAPES), default=GOALS_SHAPE)
    parser.add_argument("--model", type=Path, help="model folder; default: a random model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument(
        "--prompt", type=int, default=128, help="prompt length of decoding, in tokens"
    )
    parser.add_argument("--output", type=int, default=128, help="tokens to decode")
    parser.add_argument("--prefill", type=int, default=2048, help="prompt length of prefill")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline-rounds", type=int, help="rounds with transformers")
    parser.add_argument("--dtype", nargs="+", choices=sorted(BYTES_OF_WEIGHT), help="of the engine")
    parser.add_argument("--attention", default="auto", help="of transformers, such as sdpa")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--buffer-mib", type=int, help="buffer of the bandwidth test")
    parser.add_argument("--matrix", type=int, help="size of the matrix test")
    parser.add_argument("--out", type=Path, help="JSON file for all measurements")
    parser.add_argument("--verbose", action="store_true", help="show the contenders' logs")
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
    """The workload of one round."""
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
    """Results of the rounds so far."""

    rounds: list[dict[str, dict[str, float]]]
    """Tokens per second of each round, by contender and row."""
    about: dict[str, str]
    """Versions and settings, by contender."""
    failures: dict[str, str]
    """The error of each contender that failed."""


def measure(
    options: argparse.Namespace, folder: Path, contenders: Mapping[str, tuple[str, str]]
) -> Iterator[Measured]:
    """Runs every contender in turn, round after round; skips a contender after it failed.

    Yields the results so far after each round.
    """
    found = Measured([], {}, {})
    for number in range(options.rounds):
        work = workload(options, folder, number).to_json()
        found.rounds.append({})
        for name, (module, argument) in contenders.items():
            skipped = name == summary.BASELINE and number >= options.baseline_rounds
            if skipped or name in found.failures:
                continue
            try:
                output = call_json(module, work, argument, verbose=options.verbose)
            except Failed as failure:
                found.failures[name] = str(failure)
                print(f"round {number + 1}, {name}: {failure}", flush=True)
                continue
            found.rounds[-1][name], found.about[name] = output["figures"], output["about"]
            figures = "; ".join(f"{row} {rate:,.0f}" for row, rate in output["figures"].items())
            print(f"round {number + 1}, {name}: {figures}", flush=True)
        yield found


def run(options: argparse.Namespace, folder: Path, probe: Probe) -> int:
    """Runs all rounds and prints the table; returns the exit status."""
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
    work = workload(options, folder, 0)
    goals = options.device == "cuda" and options.model is None and options.shape == GOALS_SHAPE
    for measured in measure(options, folder, contenders):
        rows = summary.lines(measured.rounds, dtypes, config, probe, work, with_goals=goals)
        if options.out:  # after each round, in case the run is interrupted
            _write(options, probe, measured, rows)
    print("\n".join(["", *summary.describe(probe), *summary.table(rows), ""]))
    for name, about in measured.about.items():
        print(f"{name}: {about}")
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
                flags = ("--shape", options.shape, "--out", made, "--device", options.device)
                print(call("make_model", *flags, verbose=options.verbose).strip(), flush=True)
            return run(options, folder, probe)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
