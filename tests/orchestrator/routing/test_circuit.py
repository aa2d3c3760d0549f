"""The circuit breaker, and the slow start of new engines."""

from __future__ import annotations

import pytest

from orchestrator.routing import circuit as circuit_module
from orchestrator.routing.circuit import Circuit, SlowStart
from tests.clock import Clock
from tests.orchestrator.fakes import SCRIPT, FakeInference, orchestrator
from tests.orchestrator.routing.test_replicas import MODEL, FakeReplica, replicas
from tests.orchestrator.test_service import generate, request, text_of

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(circuit_module, "time", clock)
    return clock


def test_consecutive_failures_open_it(clock: Clock) -> None:
    """A success resets the count."""
    circuit = Circuit()
    assert not circuit.failure()
    assert not circuit.failure()
    circuit.success()
    assert [circuit.failure() for _ in range(3)] == [False, False, True]
    assert circuit.is_open


def test_a_failure_while_half_open_doubles_the_delay(clock: Clock) -> None:
    """The delay has an upper limit; a success closes the circuit."""
    circuit = Circuit()
    for _ in range(3):
        circuit.failure()
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        assert circuit.is_open
        clock.now += seconds - 0.01
        assert circuit.is_open
        clock.now += 0.02
        assert not circuit.is_open
        assert circuit.failure()
    clock.now += 31
    circuit.success()
    assert not circuit.failure()


def test_concurrent_failures_count_once(clock: Clock) -> None:
    """32 streams on a killed engine do not lengthen the delay."""
    circuit = Circuit()
    for _ in range(32):
        circuit.failure()
    clock.now += 1.01
    assert not circuit.is_open


def test_a_high_failure_rate_opens_it(clock: Clock) -> None:
    """Without three consecutive failures."""
    circuit = Circuit()
    opened = False
    for _ in range(10):
        circuit.success()
        opened = opened or circuit.failure() or circuit.failure()
    assert opened
    good = Circuit()
    for _ in range(20):
        good.success()
        good.success()
        assert not good.failure()


def test_a_new_engine_starts_slowly(clock: Clock) -> None:
    """From a tenth of its share to all of it."""
    slow_start = SlowStart()
    shares = []
    for _ in range(5):
        shares.append(slow_start.share)
        clock.now += 2.5
    assert shares == pytest.approx([0.1, 0.25, 0.5, 0.75, 1.0])
    slow_start.restart()
    assert slow_start.share == pytest.approx(0.1)


def test_a_cold_engine_is_picked_when_the_warm_one_has_ten_times_as_much(clock: Clock) -> None:
    """During its slow start; then it needs only a lower load."""
    warm, cold = FakeReplica("a:1"), FakeReplica("b:1")
    clock.now += 60
    cold.slow_start.restart()
    made = replicas(warm, cold)
    prompt = list(range(10))
    warm.outstanding_tokens = 50
    assert made.pick(MODEL, prompt) is warm  # type: ignore[comparison-overlap]
    warm.outstanding_tokens = 200
    assert made.pick(MODEL, prompt) is cold  # type: ignore[comparison-overlap]
    warm.outstanding_tokens = 50
    clock.now += 60
    assert made.pick(MODEL, prompt) is cold  # type: ignore[comparison-overlap]


def test_an_open_circuit_is_ignored_if_most_are_open(clock: Clock) -> None:
    """If more than half of the circuits are open, all engines are tried."""
    members = [FakeReplica(f"{name}:1") for name in "abcd"]
    made = replicas(*members)
    for member in members[:2]:
        for _ in range(3):
            member.circuit.failure()
    picked = {made.pick(MODEL, [number]).address for number in range(100)}
    assert picked == {"c:1", "d:1"}
    for _ in range(3):
        members[2].circuit.failure()
    assert len({made.pick(MODEL, [number]).address for number in range(100)}) == 4


async def test_an_engine_that_breaks_every_stream_gets_no_requests() -> None:
    """Although its health is SERVING; no client receives an error."""
    engines = [FakeInference(), FakeInference()]
    engines[0].fail_after = 3
    async with orchestrator(*engines) as running:
        for number in range(16):
            assert text_of(await generate(running, request(f"Hello {number}"))) == SCRIPT
    assert len(engines[0].requests) <= 5
