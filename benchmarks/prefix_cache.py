"""Time to the first token of a 1,024-token prompt: cached in the prefix cache, against uncached.

python -m benchmarks.prefix_cache
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.alone import run_alone
from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from models.demo.evaluate import FOLDER

NUM_TOKENS = 1024


def first_token(engine: Engine, name: str, prompt: list[int]) -> float:
    """Runs the prompt; returns the seconds from arrival to the first token."""
    params = SamplingParams(max_tokens=1, temperature=0.0)
    sequence = Sequence(name, prompt, params)
    timings = run_alone(engine, sequence).timings
    assert timings.first_token is not None
    return timings.first_token - timings.arrival


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=FOLDER, help="model folder")
    parser.add_argument("--prompts", type=int, default=20, help="prompts; each runs twice")
    parser.add_argument("--threads", type=int, default=0, help="0: the container's CPU limit")
    arguments = parser.parse_args()
    engine = load_engine(
        replace(
            EngineOptions.defaults(arguments.model, "m"),
            threads=arguments.threads,
            kv_cache_tokens=65_536,
            num_speculative_tokens=0,
        )
    )
    rng = random.Random(0)
    cold, warm = [], []
    for number in range(arguments.prompts):
        prompt = [rng.randrange(engine.model_info.vocab_size) for _ in range(NUM_TOKENS)]
        cold.append(first_token(engine, f"{number} cold", prompt))
        warm.append(first_token(engine, f"{number} warm", prompt))
    ratio = statistics.median(warm) / statistics.median(cold)
    print(f"{arguments.prompts} prompts of {NUM_TOKENS} tokens, medians of the time to first token")
    print(f"first time  {statistics.median(cold) * 1e3:8.1f} ms")
    print(f"second time {statistics.median(warm) * 1e3:8.1f} ms, {ratio:.1%} of the first")


if __name__ == "__main__":
    main()
