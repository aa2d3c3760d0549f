"""Engines that give no first tokens while others do."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.routing import circuit as circuit_module
from orchestrator.routing import first_tokens as first_tokens_module
from orchestrator.routing.first_tokens import DECAY, MIN_OVERDUE_SECONDS, SLOWNESS, FirstTokens
from orchestrator.routing.replicas import Replicas
from tests.clock import Clock
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.routing.test_replicas import MODEL, FakeReplica, replicas
from tests.orchestrator.test_service import generate, request, text_of
from tests.orchestrator.tokenizers_made import byte_level

pytestmark = pytest.mark.timeout(60)

LIMIT = MIN_OVERDUE_SECONDS + 0.1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(circuit_module, "time", clock)
    monkeypatch.setattr(first_tokens_module, "time", clock)
    return clock


def serve(tokens: FirstTokens, clock: Clock, seconds: float = 0.1) -> None:
    """One request with its first token after this time."""
    key = tokens.begin()
    clock.now += seconds
    tokens.served(key)
    tokens.left(key)


def test_a_request_is_overdue_if_a_later_one_was_served_elsewhere(clock: Clock) -> None:
    """It is counted once, and forgotten when it leaves or the engine gives a first token."""
    one, other = FirstTokens(), FirstTokens()
    key = one.begin()
    clock.now += LIMIT
    assert one.find_overdue([one, other]) == (False, 0), "no other engine has served"
    serve(other, clock)
    assert one.find_overdue([one, other]) == (True, 1)
    assert one.find_overdue([one, other]) == (True, 0)
    one.left(key)
    assert one.find_overdue([one, other]) == (False, 0)
    one.begin()
    clock.now += LIMIT
    serve(other, clock)
    assert one.find_overdue([one, other]) == (True, 1)
    serve(one, clock)
    assert one.find_overdue([one, other]) == (False, 0)


def test_an_engine_that_serves_later_requests_is_not_late(clock: Clock) -> None:
    """A long prompt is not, nor is one that began after the last request of the others."""
    one, other = FirstTokens(), FirstTokens()
    one.begin()
    serve(one, clock)
    clock.now += LIMIT
    serve(other, clock)
    assert one.find_overdue([one, other]) == (False, 0)
    one.begin()
    clock.now += LIMIT
    assert one.find_overdue([one, other]) == (False, 0)


def test_the_limit_follows_the_other_engines(clock: Clock) -> None:
    """If their first tokens take long, so may this engine's."""
    one, other = FirstTokens(), FirstTokens()
    one.begin()
    serve(other, clock, seconds=4.0)
    serve(other, clock)
    limit = SLOWNESS * 4.0 * DECAY
    clock.now += limit - 4.2
    assert one.find_overdue([one, other]) == (False, 0)
    clock.now += 0.2
    assert one.find_overdue([one, other]) == (True, 1)


def test_a_late_engine_is_not_chosen_and_its_circuit_counts(clock: Clock) -> None:
    """Each overdue request is a failure; at least half of the engines are always tried."""
    members = [FakeReplica(f"{name}:1") for name in "abcd"]
    clock.now += 60  # after their slow start
    made = replicas(*members)
    for late in members[:2]:
        for _ in range(3):
            late.first_tokens.begin()
    clock.now += LIMIT
    serve(members[2].first_tokens, clock)
    assert addresses(made) == {"c:1", "d:1"}
    assert members[0].circuit.is_open
    members[2].first_tokens.begin()
    clock.now += LIMIT
    serve(members[3].first_tokens, clock)
    assert addresses(made) == {"a:1", "b:1", "c:1", "d:1"}


def addresses(made: Replicas) -> set[str]:
    """The replicas chosen for a hundred prompts."""
    return {made.pick(MODEL, [number]).address for number in range(100)}


async def test_a_stuck_engine_gets_no_further_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its health stays SERVING, and the prompt's prefix prefers it."""
    monkeypatch.setattr(first_tokens_module, "MIN_OVERDUE_SECONDS", 0.05)
    monkeypatch.setattr(first_tokens_module, "SLOWNESS", 0.0)  # however slow the other engine is
    prefix = "Hello " * 40
    async with orchestrator(FakeInference(), FakeInference()) as running:
        stuck = engine_of(running, prefix)
        stuck.accept_delay = 60.0
        waiting = asyncio.create_task(
            generate(running, request(prefix, sampling={"max_tokens": 1}))
        )
        await eventually(lambda: stuck.num_open == 1, "the engine has the request")
        assert engine_of(running, 2 * prefix) is stuck
        assert text_of(await generate(running, request("a"))) == SCRIPT
        await eventually(lambda: engine_of(running, 2 * prefix) is not stuck, "it is overdue")
        assert text_of(await generate(running, request(2 * prefix))) == SCRIPT
        assert len(stuck.requests) == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: engine_of(running, 2 * prefix) is stuck, "the request has left")
        assert stuck.num_open == 0


def engine_of(running: Orchestrator, text: str) -> FakeInference:
    """The engine that would be chosen for this prompt now."""
    ids = byte_level().encode(text, add_special_tokens=False).ids
    [model] = running.service._replicas.models.values()
    address = running.service._replicas.pick(model, ids).address
    addresses = [upstream.address for upstream in running.upstreams]
    return running.engines[addresses.index(address)]
