"""Measures short requests beside a long prompt, in the engine of the checkout PYTHONPATH names.

Arguments: model folder, dtype, threads, length of the long prompt. Prints seconds as JSON.
`benchmarks.long_prompt` runs this file; it uses of each checkout only what both have.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence

STEPS_BEFORE_SHORT = 2
"""The short prompt arrives in the middle of the long one's prefill."""


class Client:
    """Adds sequences to an engine and runs it, and keeps the longest pause of one stream."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.longest_pause = 0.0
        self._rng = random.Random(0)
        self._number = 0

    def add(self, length: int, max_tokens: int) -> Sequence:
        """A sequence with a random prompt, so that no prefix is cached."""
        self._number += 1
        ids = [self._rng.randrange(100, 30_000) for _ in range(length)]
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        sequence = Sequence(str(self._number), ids, params)
        self.engine.add(sequence)
        return sequence

    def run(self, until: Callable[[], bool]) -> float:
        """Run steps until a condition holds; returns the seconds."""
        began = time.monotonic()
        while not until():
            step = time.monotonic()
            self.engine.step()  # every step has a token for the stream, so its time is the pause
            self.longest_pause = max(self.longest_pause, time.monotonic() - step)
        return time.monotonic() - began


def has_token(sequence: Sequence) -> Callable[[], bool]:
    """Whether the sequence has its first token."""
    return lambda: sequence.first_token_time is not None


def measure(engine: Engine, length: int) -> dict[str, float]:
    """One round. Seconds."""
    client = Client(engine)
    alone = client.run(has_token(client.add(length, 1)))
    stream = client.add(20, 2_000)
    client.run(has_token(stream))
    quiet = client.run(has_token(client.add(60, 1)))
    client.longest_pause = 0.0
    long = client.add(length, 1)
    arrival = time.monotonic()
    for _ in range(STEPS_BEFORE_SHORT):
        client.run(lambda n=stream.num_completion_tokens: stream.num_completion_tokens > n)
    short = client.run(has_token(client.add(60, 1)))
    client.run(has_token(long))
    beside = time.monotonic() - arrival
    engine.abort(stream.request_id)
    return {
        "long prompt alone": alone,
        "long prompt beside a stream and a short prompt": beside,
        "TTFT of a short prompt, quiet": quiet,
        "TTFT of a short prompt beside the long one": short,
        "longest pause of the stream": client.longest_pause,
    }


def main() -> None:
    """Load the engine, run one round unmeasured at a shorter length, and measure one."""
    folder, dtype, threads, length = sys.argv[1:]
    options = replace(
        EngineOptions.defaults(Path(folder), "m"),
        dtype=dtype,
        threads=int(threads),
        max_context=8_192,
        kv_cache_tokens=20_000,
        num_speculative_tokens=0,
    )
    engine = load_engine(options)
    measure(engine, 600)
    print(json.dumps(measure(engine, int(length))))


if __name__ == "__main__":
    main()
