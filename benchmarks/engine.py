"""This engine against llama.cpp, CTranslate2 and transformers, on the same random weights.

pip install -e '.[benchmarks]' && python -m benchmarks.engine

Each contender runs in a process of its own, in turn, round after round, so that whatever else
runs on the machine slows all. Figures are medians over the rounds; ratios are medians of each
round's ratio to llama.cpp.
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

CONTENDERS = {
    "weir int8": ("weir", "int8", "auto"),
    "weir bfloat16": ("weir", "bfloat16", "auto"),
    "weir int8 by torch": ("weir", "int8", "torch"),
    "llama.cpp Q8_0": ("llama_cpp_q8",),
    "CTranslate2 int8": ("ctranslate2_int8",),
    "transformers bfloat16": ("transformers_bf16",),
}
BASELINE = "llama.cpp Q8_0"
USUAL = [name for name in CONTENDERS if name != "weir int8 by torch"]
"""Who runs unless others are named."""
MEASURES = ("prefill_tokens_per_second", "decode_tokens_per_second")


def measure(
    name: str, folder: Path, arguments: argparse.Namespace, streams: int
) -> dict[str, float]:
    """Runs a contender; raises CalledProcessError where it fails."""
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder; else random SmolLM2-135M is made")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--output", type=int, default=128, help="tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=USUAL)
    parser.add_argument("--out", type=Path, help="where to write all measurements as JSON")
    parser.add_argument("--verbose", action="store_true", help="let contenders write their logs")
    arguments = parser.parse_args()
    folder = arguments.model or Path(tempfile.mkdtemp()) / "smollm2-135m"
    if arguments.model is None:
        make_model.make(folder, "smollm2-135m")
    results: dict[str, dict[int, list[dict[str, float]]]] = {}
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
    for kind in MEASURES:
        print(f"\n{kind.replace('_', ' ')}, median of {arguments.rounds}")
        for name, by_streams in results.items():
            cells = []
            for streams, rows in by_streams.items():
                values = [row[kind] for row in rows]
                cell = f"{streams} streams {statistics.median(values):7.0f}"
                if BASELINE in results:
                    base = [row[kind] for row in results[BASELINE][streams]]
                    ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
                    cell += f" ({ratio:4.2f}x)"
                cells.append(cell)
            print(f"  {name:<24}" + "   ".join(cells))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
