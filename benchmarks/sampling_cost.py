"""Duration of an engine step with sampling, relative to the same step with greedy decoding.

python -m benchmarks.sampling_cost

The model has SmolLM2-135M's shape and random weights. The sampling parameters change with every
step, each setting once in a cycle, so that other load on the machine affects all alike. A figure is
the median over the cycles; a ratio is the median of the cycles' ratios to their greedy step.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import make_model
from inference.engine.engine import Engine
from inference.engine.errors import EngineError
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.5": {"top_p": 0.5},
    "top_p 0.1": {"top_p": 0.1},
    "top_k 50": {"top_k": 50},
    "top_k 50, top_p 0.95": {"top_k": 50, "top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05},
    "all penalties": {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "logprobs": {"num_logprobs": 0},
    "5 top logprobs": {"num_logprobs": 5},
}
BASELINE = "greedy"
PROMPT_LENGTH = 128


def cycles(engine: Engine, num_streams: int, num_cycles: int) -> list[dict[str, float]]:
    """Runs cycles of one step with each setting; returns each step's seconds."""
    rng = random.Random(0)
    vocab_size = engine.model_info.vocab_size
    settings = {name: SamplingParams(**params) for name, params in SETTINGS.items()}
    num_tokens = (num_cycles + 1) * len(settings) + 1
    endless = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    sequences = [
        Sequence(str(n), [rng.randrange(vocab_size) for _ in range(PROMPT_LENGTH)], endless)
        for n in range(num_streams)
    ]
    for sequence in sequences:
        engine.add(sequence)
    while any(sequence.num_completion_tokens == 0 for sequence in sequences):
        engine.step()
    found: list[dict[str, float]] = []
    for _ in range(num_cycles):
        found.append({})
        for name in rng.sample(sorted(settings), len(settings)):
            for sequence in sequences:
                sequence.params = settings[name]
            began = time.perf_counter()
            engine.step()
            found[-1][name] = time.perf_counter() - began
    engine.abort_all(EngineError("the benchmark is over"))
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="model folder; default: a random model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--cycles", type=int, default=40, help="steps with each setting")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: the container's CPU limit")
    arguments = parser.parse_args()
    context = PROMPT_LENGTH + (arguments.cycles + 1) * len(SETTINGS) + 1
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder
        if folder is None:
            folder = Path(made)
            make_model.make(folder, "smollm2-135m")
        engine = load_engine(
            replace(
                EngineOptions.defaults(folder, "m"),
                num_speculative_tokens=0,
                dtype=arguments.dtype,
                kernels=arguments.kernels,
                threads=arguments.threads,
                max_context=context,
                kv_cache_tokens=max(arguments.streams) * (context + 16),
            )
        )
    for num_streams in arguments.streams:
        compare(engine, num_streams, arguments.cycles)


def compare(engine: Engine, num_streams: int, num_cycles: int) -> None:
    """Runs the cycles and prints a table."""
    found = cycles(engine, num_streams, num_cycles)
    print(f"\n{num_streams} streams, {num_cycles} steps with each setting")
    print(f"{'':24}{'ms a step':>10}{'ratio':>8}  quartiles of the ratio")
    for name in SETTINGS:
        ratios = [cycle[name] / cycle[BASELINE] for cycle in found]
        low, middle, high = statistics.quantiles(ratios, n=4)
        milliseconds = statistics.median(cycle[name] for cycle in found) * 1e3
        print(f"{name:24}{milliseconds:10.2f}{middle:8.3f}  {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
