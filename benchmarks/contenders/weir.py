"""This engine, including its scheduler, KV cache and sampler."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from benchmarks.contenders.measure import load_from_arguments, report
from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence


def run(
    engine: Engine, name: str, prompts: list[list[int]], num_tokens: int
) -> tuple[float, float, int]:
    """Runs all prompts; returns the seconds of prefill, and the seconds and tokens of decode.

    Prefill ends when every stream has its first token. Tokens that streams decode before are not
    counted.
    """
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    sequences = [Sequence(f"{name}{n}", prompt, params) for n, prompt in enumerate(prompts)]
    began = time.monotonic()
    for sequence in sequences:
        engine.add(sequence)
    while any(sequence.num_completion_tokens == 0 for sequence in sequences):
        engine.step()
    prefilled = time.monotonic()
    num_left = sum(num_tokens - sequence.num_completion_tokens for sequence in sequences)
    while engine.has_work:
        engine.step()
    return prefilled - began, time.monotonic() - prefilled, num_left


def main() -> None:
    """The last two arguments are the weights' dtype and the kernels."""
    kernels, dtype = sys.argv.pop(), sys.argv.pop()
    load = load_from_arguments()
    engine = load_engine(
        replace(
            EngineOptions.defaults(load.folder, "m"),
            num_speculative_tokens=0,
            dtype=dtype,
            kernels=kernels,
            threads=load.num_threads,
            max_context=load.prompt_length + load.output_length,
            kv_cache_tokens=2 * load.num_streams * (load.prompt_length + load.output_length),
        )
    )
    warm = [list(reversed(prompt)) for prompt in load.prompts()]
    run(engine, "warm", warm, 4)
    report(load, *run(engine, "measured", load.prompts(), load.output_length))


if __name__ == "__main__":
    main()
