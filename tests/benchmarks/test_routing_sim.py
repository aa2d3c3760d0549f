"""The simulator of routing policies: prefixes are found, loads and hit rates add up."""

from __future__ import annotations

import random

from benchmarks.routing_sim import BLOCK, CACHE_BLOCKS, Replica, Request, multi_turn, simulate
from orchestrator.routing.policies.prefix import Prefix
from orchestrator.routing.policies.simple import Affinity, RoundRobin


def test_a_replica_computes_what_it_has_not_cached() -> None:
    """A repeated prompt is all cached; the cache is bounded; a queue delays the first token."""
    replica, request = Replica(), Request(0.0, tuple(range(100)), 10)
    first, _, cached = replica.run(request, 0.0)
    assert cached == 0
    again, _, cached = replica.run(request, 0.0)
    assert cached == 100
    assert again > first > 100 * BLOCK / 10_000
    for number in range(100):
        replica.run(Request(0.0, tuple(range(number << 20, (number << 20) + 100)), 1), 0.0)
    assert len(replica.cache) == CACHE_BLOCKS


def test_the_index_of_prefixes_keeps_conversations_together() -> None:
    """More hits and a shorter wait than both policies that know nothing of the caches."""
    requests = list(multi_turn(random.Random(3), 600, rate=8.0))
    found = simulate(Prefix(), requests, 4)
    for policy in (RoundRobin(), Affinity()):
        other = simulate(policy, requests, 4)
        assert found.hit_rate > other.hit_rate + 0.1
        assert found.ttft_p99_ms < other.ttft_p99_ms
