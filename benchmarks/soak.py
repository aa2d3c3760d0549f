"""Many requests with random aborts through one engine: memory must stay flat.

python -m benchmarks.soak --requests 10000

Requests arrive at random: greedy, sampled, constrained, with log probabilities, with common
prefixes, and with deadlines that are too short. A third of the consumers abort early. At the end
all blocks of the KV cache must be free, all streams closed, and all sequences released.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from inference.engine.engine_thread import AsyncEngine
from inference.engine.errors import DeadlineExceeded
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from mesh.protocol.constraints import ConstraintForm, OutputConstraint

CONCURRENCY = 48
MAX_GROWTH_BYTES = 32 * 2**20
"""Allowed growth of the process after the first tenth of the requests, for fragmentation."""


class Soaked(NamedTuple):
    """Outcomes of the requests, and what was left at the end."""

    outcomes: Counter[str]
    growth_bytes: int
    num_sequences_left: int
    num_live: int
    kv_usage: float


async def soak(engine: AsyncEngine, num_requests: int, seed: int) -> Soaked:
    """Runs the requests through a started engine."""
    rng = random.Random(seed)
    prefixes = [random_ids(rng, engine, rng.randint(20, 90)) for _ in range(4)]
    outcomes: Counter[str] = Counter()
    numbers = iter(tqdm(range(num_requests), unit=" requests", mininterval=5))
    base, before = 0, num_sequences()

    async def worker() -> None:
        nonlocal base
        for number in numbers:
            outcomes[await request(engine, random.Random(f"{seed} {number}"), prefixes)] += 1
            if number == num_requests // 10:
                base = memory()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(worker())
    async with asyncio.timeout(60):
        # The engine's thread handles the last aborts asynchronously.
        while engine.load().num_running or engine.load().kv_usage:
            await asyncio.sleep(0.01)
    left = num_sequences() - before
    load = engine.load()
    live = load.num_running + load.num_waiting
    return Soaked(outcomes, memory() - base, left, live, load.kv_usage)


async def request(engine: AsyncEngine, rng: random.Random, prefixes: list[list[int]]) -> str:
    """Runs one random request; returns its outcome."""
    prompt = rng.choice(prefixes) if rng.random() < 0.5 else []
    prompt = prompt + random_ids(rng, engine, rng.randint(1, 40))
    aborts_after = rng.randint(0, 4) if rng.random() < 0.33 else None
    deadline = time.monotonic() + rng.random() * 0.05 if rng.random() < 0.05 else None
    chunks = engine.generate(str(rng.random()), prompt, random_params(rng), deadline=deadline)
    num_chunks = 0
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.finish is not None:
                    error = chunk.finish.error
                    assert error is None or isinstance(error, DeadlineExceeded), error
                    return "deadline" if error is not None else chunk.finish.reason.value
                if aborts_after is not None and num_chunks >= aborts_after:
                    return "aborted"
                num_chunks += 1
    except DeadlineExceeded:
        return "deadline"
    raise AssertionError("a stream ended without a finish")


def random_params(rng: random.Random) -> SamplingParams:
    """Random sampling parameters."""
    values: dict[str, Any] = {"max_tokens": rng.randint(1, 24)}
    if rng.random() < 0.4:
        values["temperature"] = 0.0
    if rng.random() < 0.2:
        values |= {"top_p": 0.9, "frequency_penalty": 0.5}
    if rng.random() < 0.2:
        values |= {"num_logprobs": 2, "num_prompt_logprobs": 1}
    if rng.random() < 0.15:
        least = rng.randint(1, 60)  # more patterns than the cache of compiled grammars holds
        values["constraint"] = OutputConstraint(ConstraintForm.REGEX, f"[a-z]{{{least},200}}[0-9]+")
    return SamplingParams(**values)


def random_ids(rng: random.Random, engine: AsyncEngine, length: int) -> list[int]:
    """Random token ids of the engine's vocabulary."""
    return [rng.randrange(engine.model_info.vocab_size) for _ in range(length)]


def memory() -> int:
    """Resident memory of the process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def num_sequences() -> int:
    """Sequences that are still referenced."""
    gc.collect()
    return sum(type(each) is Sequence for each in gc.get_objects())


def problems(soaked: Soaked, num_requests: int) -> list[str]:
    """Messages about everything that was not released."""
    found = []
    if sum(soaked.outcomes.values()) != num_requests:
        found.append(f"{sum(soaked.outcomes.values())} of {num_requests} requests ended")
    if soaked.growth_bytes > MAX_GROWTH_BYTES:
        found.append(f"memory grew by {soaked.growth_bytes / 2**20:.1f} MiB")
    if soaked.num_sequences_left or soaked.num_live:
        found.append(f"{soaked.num_sequences_left} sequences are left")
    if soaked.kv_usage:
        found.append(f"{soaked.kv_usage:.1%} of the KV cache is not free")
    return found


async def run(options: EngineOptions, num_requests: int, seed: int) -> Soaked:
    """Starts an engine, runs the requests, stops the engine."""
    engine = AsyncEngine(lambda: load_engine(options))
    await engine.start()
    try:
        return await soak(engine, num_requests, seed)
    finally:
        await engine.stop()


def main() -> None:
    """Exits with 1 if anything was not released."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of the forward pass")
    arguments = parser.parse_args()
    options = replace(
        EngineOptions.defaults(arguments.model, "soak"),
        threads=arguments.threads,
        kv_cache_tokens=1024,  # small enough that sequences are preempted
        max_num_seqs=32,
        max_num_waiting=CONCURRENCY,
        num_speculative_tokens=8,
    )
    soaked = asyncio.run(run(options, arguments.requests, arguments.seed))
    print(f"{arguments.requests} requests: {dict(soaked.outcomes)}")
    print(f"memory grew by {soaked.growth_bytes / 2**20:.1f} MiB after the first tenth")
    if found := problems(soaked, arguments.requests):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
