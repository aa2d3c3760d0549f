"""Compares this engine with llama.cpp, CTranslate2 and transformers on the same random weights.

pip install -e '.[benchmarks]' && python -m benchmarks.engine

Each contender runs in a separate process, one after the other, round after round, so that other
load on the machine affects all alike. Figures are medians over the rounds; a ratio is the median of
the rounds' ratios to llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import make_model
from mesh.hub.model_folder import model_folder

CONTENDERS = {
    "weir int4": ("weir", "int4", "auto"),
    "weir int8": ("weir", "int8", "auto"),
    "weir bfloat16": ("weir", "bfloat16", "auto"),
    "weir int8 by torch": ("weir", "int8", "torch"),
    "llama.cpp Q4_0": ("llama_cpp_engine", "Q4_0"),
    "llama.cpp Q4_1": ("llama_cpp_engine", "Q4_1"),
    "llama.cpp Q8_0": ("llama_cpp_engine", "Q8_0"),
    "CTranslate2 int8": ("ctranslate2_int8",),
    "transformers bfloat16": ("transformers_bf16",),
}
BASELINE = "llama.cpp Q8_0"
DEFAULT = [name for name in CONTENDERS if name not in ("weir int8 by torch", "llama.cpp Q4_1")]
"""The default of --contenders."""
MEASURES = ("prefill_tokens_per_second", "decode_tokens_per_second", "resident_mib")


def measure(
    name: str, folder: Path, arguments: argparse.Namespace, streams: int
) -> dict[str, float]:
    """Runs a contender; returns its tokens per second. Raises CalledProcessError if it fails."""
    module, *rest = CONTENDERS[name]
    numbers = (streams, arguments.prompt, arguments.output, arguments.threads)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"benchmarks.contenders.{module}",
            str(folder),
            *map(str, numbers),
            *rest,
        ],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=None if arguments.verbose else subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


Results = dict[str, dict[int, list[dict[str, float]]]]
"""Measurements of all rounds, by contender and number of streams."""


def run(folder: Path, arguments: argparse.Namespace) -> Results:
    """Runs all rounds."""
    results: Results = {}
    for number in range(arguments.rounds):
        for streams in arguments.streams:
            for name in arguments.contenders:
                found = measure(name, folder, arguments, streams)
                results.setdefault(name, {}).setdefault(streams, []).append(found)
                print(
                    f"round {number + 1}, {streams} streams, {name}: "
                    + ", ".join(f"{m.split('_')[0]} {found[m]:.0f}" for m in MEASURES),
                    flush=True,
                )
    return results


def report(results: Results, kind: str) -> str:
    """Medians of one measure, with the ratios to the baseline: a line for each contender."""
    lines = []
    for name, by_streams in results.items():
        cells = []
        for streams, rounds in by_streams.items():
            values = [each[kind] for each in rounds]
            cell = f"{streams} streams {statistics.median(values):7.0f}"
            if BASELINE in results:
                base = [each[kind] for each in results[BASELINE][streams]]
                ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
                cell += f" ({ratio:4.2f}x)"
            cells.append(cell)
        lines.append(f"  {name:<24}" + "   ".join(cells))
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model",
        type=Path,
        help="model folder with safetensors, or a GGUF file (for Weir and llama.cpp only); "
        "default: a random SmolLM2-135M, made for the run",
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="prompt length, in tokens")
    parser.add_argument("--output", type=int, default=128, help="completion length, in tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=DEFAULT)
    parser.add_argument("--out", type=Path, help="JSON file for all measurements")
    parser.add_argument("--verbose", action="store_true", help="show the contenders' logs")
    return parser.parse_args()


def main() -> None:
    """Runs all contenders, prints the medians, and writes the measurements to `--out`."""
    arguments = parse_arguments()
    if arguments.model is None:
        folder = Path(tempfile.mkdtemp()) / "smollm2-135m"
        make_model.make(folder, "smollm2-135m")
    else:
        folder = model_folder(str(arguments.model), ())
    results = run(folder, arguments)
    for kind in MEASURES:
        print(f"\n{kind.replace('_', ' ')}, median of {arguments.rounds}")
        print(report(results, kind))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
