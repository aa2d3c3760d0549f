"""Simulates routing policies on replicas with prefix caches.

    python -m benchmarks.routing_sim --replicas 2 8 32 128 1000

The policies are the orchestrator's own; the engines are simulated: a replica computes prompts one
after another, decodes its running requests together, and evicts the least recently used blocks.
Traces: conversations that share one of a few system prompts (`multi-turn`), and questions about
documents of Zipf-distributed popularity (`documents`). The load grows with the number of replicas.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.percentile import percentile
from orchestrator.routing.policies.policy import RoutingPolicy
from orchestrator.routing.policies.prefix import Prefix
from orchestrator.routing.policies.simple import Affinity, LeastOutstanding, RoundRobin

PREFILL_TOKENS_PER_SECOND = 10_000
STEP_SECONDS = 0.012
"""Of one decode step at a small batch; it grows by as much again for each 64 requests."""
CACHE_BLOCKS = 6_000
BLOCK = 16
MAX_TOKENS = 400
REQUESTS_PER_REPLICA_SECOND = 2.0

POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    "round robin": RoundRobin,
    "least outstanding": LeastOutstanding,
    "64-token affinity": Affinity,
    "prefix": Prefix,
}


class Request(NamedTuple):
    """A prompt as the ids of its blocks; equal ids mean equal blocks in equal places."""

    time: float
    blocks: tuple[int, ...]
    num_output_tokens: int

    @property
    def token_ids(self) -> list[int]:
        """The same prompt as token ids, which policies hash."""
        return [block for block in self.blocks for _ in range(BLOCK)]


@dataclass
class Replica:
    """A simulated engine."""

    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    prefill_free: float = 0.0
    """When the prompts before a new one are computed."""
    num_running: int = 0
    outstanding: float = 0.0
    num_requests: int = 0
    busy: float = 0.0

    def run(self, request: Request, now: float) -> tuple[float, float, int]:
        """Time of the first token, of the last one, and the blocks that were cached."""
        keys = list(itertools.accumulate(request.blocks, lambda a, b: hash((a, b)), initial=0))[1:]
        num_cached = sum(1 for _ in itertools.takewhile(self.cache.__contains__, keys))
        for key in reversed(keys):
            self.cache[key] = None
            self.cache.move_to_end(key)
        while len(self.cache) > CACHE_BLOCKS:
            self.cache.popitem(last=False)
        step = STEP_SECONDS * (1 + self.num_running / 64)
        # Decode steps share the device with prompts.
        speed = PREFILL_TOKENS_PER_SECOND / (1 + min(self.num_running, 64) / 64)
        duration = (len(keys) - num_cached) * BLOCK / speed + step
        self.prefill_free = max(self.prefill_free, now) + duration
        self.busy += duration
        return self.prefill_free, self.prefill_free + request.num_output_tokens * step, num_cached


class Result(NamedTuple):
    """The figures of one policy."""

    hit_rate: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    imbalance: float
    """Work of the busiest replica, relative to the mean."""


def multi_turn(rng: random.Random, num_requests: int, rate: float) -> Iterator[Request]:
    """Conversations of 2 to 8 turns that begin with one of 4 system prompts of 1,000 tokens.

    A turn adds 160 to 1,920 tokens, and the user reads an answer for 1 to 4 seconds.
    """
    ids = itertools.count(1 << 32)
    systems = [tuple(range(n * 1000, n * 1000 + 64)) for n in range(1, 5)]
    waiting: list[tuple[float, int, tuple[int, ...], int]] = []
    now = 0.0
    for number in itertools.count():
        now += rng.expovariate(rate / 5)
        heapq.heappush(waiting, (now, number, rng.choice(systems), rng.randint(2, 8)))
        while waiting and waiting[0][0] <= now:
            time, key, history, turns = heapq.heappop(waiting)
            prompt = history + tuple(itertools.islice(ids, rng.randint(10, 120)))
            num_output = rng.randint(40, MAX_TOKENS)
            yield Request(time, prompt, num_output)
            num_requests -= 1
            if not num_requests:
                return
            if turns > 1:
                answer = tuple(itertools.islice(ids, num_output // BLOCK))
                later = time + num_output * STEP_SECONDS + rng.uniform(1, 4)
                heapq.heappush(waiting, (later, key, prompt + answer, turns - 1))


def documents(rng: random.Random, num_requests: int, rate: float) -> Iterator[Request]:
    """Questions about documents of 2,000 to 8,000 tokens behind one shared template."""
    ids = itertools.count(1 << 40)
    template = tuple(range(8))
    num_documents = max(20, round(rate * 10))
    weights = [1 / (rank + 1) for rank in range(num_documents)]
    lengths = [rng.randint(125, 500) for _ in range(num_documents)]
    now = 0.0
    for number in rng.choices(range(num_documents), weights, k=num_requests):
        now += rng.expovariate(rate)
        start = (number + 1) << 20
        document = tuple(range(start, start + lengths[number]))
        question = tuple(itertools.islice(ids, 3))
        yield Request(now, template + document + question, rng.randint(40, MAX_TOKENS))


TRACES = {"multi-turn": (multi_turn, 1.0), "documents": (documents, 1.0)}
"""Traces, and their rates relative to `REQUESTS_PER_REPLICA_SECOND`."""


def simulate(policy: RoutingPolicy, requests: Sequence[Request], num_replicas: int) -> Result:
    """Run a trace; the first fifth warms the caches and is not counted."""
    replicas = {f"10.0.{n // 256}.{n % 256}:50053": Replica() for n in range(num_replicas)}
    ends: list[tuple[float, int, str, Request]] = []
    ttfts: list[float] = []
    num_blocks = num_cached = 0
    for number, request in enumerate(requests):
        while ends and ends[0][0] <= request.time:
            _, _, address, done = heapq.heappop(ends)
            replica = replicas[address]
            replica.num_running -= 1
            replica.outstanding -= len(done.blocks) * BLOCK + MAX_TOKENS
        token_ids = request.token_ids
        loads = {address: replica.outstanding for address, replica in replicas.items()}
        address = policy.choose(loads, token_ids)
        replica = replicas[address]
        first, last, hits = replica.run(request, request.time)
        replica.num_running += 1
        replica.num_requests += 1
        replica.outstanding += len(token_ids) + MAX_TOKENS
        heapq.heappush(ends, (last, number, address, request))
        if number >= len(requests) // 5:
            ttfts.append(first - request.time)
            num_blocks += len(request.blocks)
            num_cached += hits
    busy = [replica.busy for replica in replicas.values()]
    return Result(
        num_cached / num_blocks,
        percentile(ttfts, 50) * 1e3,
        percentile(ttfts, 99) * 1e3,
        max(busy) / statistics.fmean(busy),
    )


def table(rows: Sequence[dict[str, object]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| trace | replicas | policy | hit rate | TTFT p50 / p99 ms | busiest replica / mean |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        "| {trace} | {replicas} | {policy} | {hit_rate:.0%} | {ttft_p50_ms:.0f} / "
        "{ttft_p99_ms:.0f} | {imbalance:.2f} |".format(**row)
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 8, 32, 128, 1000])
    parser.add_argument("--requests", type=int, default=60, help="requests for each replica")
    parser.add_argument("--least", type=int, default=2000, help="least requests of a trace")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for trace, (make, share) in TRACES.items():
        for num_replicas in arguments.replicas:
            rate = REQUESTS_PER_REPLICA_SECOND * share * num_replicas
            number = max(arguments.least, arguments.requests * num_replicas)
            requests = list(make(random.Random(arguments.seed), number, rate))
            for name, policy in POLICIES.items():
                result = simulate(policy(), requests, num_replicas)
                rows.append(
                    {"trace": trace, "replicas": num_replicas, "policy": name, **result._asdict()}
                )
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(f"\n{table(rows)}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
