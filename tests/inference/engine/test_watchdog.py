"""Steps that do not return: when they count as stuck, and what happens to their sequences."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from inference.application import Application
from inference.engine import watchdog as watchdog_module
from inference.engine.engine_thread import AsyncEngine
from inference.engine.errors import EngineError, EngineUnavailable
from inference.engine.watchdog import FIRST_STEP_SECONDS, SLOWNESS, StepClock, StepState, Watchdog
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.finish import FinishReason
from tests.clock import Clock
from tests.helpers import eventually
from tests.inference.stub_engine import LONG, collect, expected_tokens, running, until
from tests.inference.stub_runner import StubRunner

STEP_TIMEOUT = 0.05
ONE_TOKEN = SamplingParams(max_tokens=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog_module, "time", clock)
    return clock


def measure(steps: StepClock, clock: Clock, num_tokens: int, seconds: float) -> None:
    """A step of this size and duration."""
    steps.begin()
    steps.includes(num_tokens)
    clock.now += seconds
    steps.end()


def expected(steps: StepClock, num_tokens: int) -> float:
    """The expected duration of a step that runs now."""
    steps.begin()
    steps.includes(num_tokens)
    return steps.expected_seconds


def test_a_step_is_expected_to_take_as_long_as_others_of_its_size(clock: Clock) -> None:
    """Sizes are powers of two; the longest recent step counts."""
    steps = StepClock()
    assert expected(steps, 4) == FIRST_STEP_SECONDS / SLOWNESS
    measure(steps, clock, 4, 0.25)
    measure(steps, clock, 7, 0.5)
    measure(steps, clock, 5, 0.125)
    assert expected(steps, 6) == pytest.approx(0.5, rel=0.05)
    for _ in range(300):
        measure(steps, clock, 5, 0.125)
    assert expected(steps, 6) == pytest.approx(0.125)


def test_other_sizes_limit_a_size_without_a_step(clock: Clock) -> None:
    """In proportion to the next smaller one, else as long as the next larger one."""
    steps = StepClock()
    measure(steps, clock, 8, 0.5)
    assert expected(steps, 32) == pytest.approx(2.0)
    assert expected(steps, 1) == pytest.approx(0.5)
    measure(steps, clock, 0, 0.001)
    assert expected(steps, 1) == pytest.approx(0.5), "a step without tokens is no measurement"
    assert expected(steps, 0) == pytest.approx(0.5)
    measure(steps, clock, 1, 0.25)
    assert expected(steps, 2) == pytest.approx(0.5)
    assert expected(steps, 8) == pytest.approx(0.5)


def test_a_step_is_stuck_after_its_limit_and_lost_after_twice_the_limit(clock: Clock) -> None:
    """The limit is ten times the expected duration, and at least the minimum."""
    steps = StepClock()
    states: list[StepState] = []
    measure(steps, clock, 4, 5.0)
    watchdog = Watchdog(steps, 30.0, states.append)
    steps.begin()
    steps.includes(4)
    for _ in range(51):
        watchdog.check(1.0)
    assert states == []
    watchdog.check(1.0)
    assert states == [StepState.STUCK]
    steps.end()
    watchdog.check(1.0)
    assert states == [StepState.STUCK, StepState.RETURNING]
    measure(steps, clock, 2048, 0.001)
    steps.begin()
    steps.includes(2048)
    for _ in range(61):
        watchdog.check(1.0)
    assert states[2:] == [StepState.STUCK]
    watchdog.check(1.0)
    assert states[2:] == [StepState.STUCK, StepState.LOST]


async def test_time_in_which_the_process_was_stopped_does_not_count(clock: Clock) -> None:
    """After SIGCONT the step has its time, although the clock has gone on."""
    steps = StepClock()
    measure(steps, clock, 1, 0.001)
    watchdog = Watchdog(steps, STEP_TIMEOUT, lambda state: None)
    steps.begin()
    watching = asyncio.create_task(watchdog.run())
    await eventually(lambda: watchdog._number == steps.number, "the step is seen")
    clock.now += 1000
    await eventually(lambda: watchdog.age_seconds > 0, "the next check")
    assert watchdog.age_seconds < STEP_TIMEOUT
    assert watchdog.state is StepState.RETURNING
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.fixture
async def stuck(request: pytest.FixtureRequest) -> AsyncIterator[tuple[AsyncEngine, StubRunner]]:
    """An engine whose next step will not return until the runner's gate is released."""
    runner = StubRunner(supports_async_scheduling=getattr(request, "param", False))
    async with running(runner, step_timeout=STEP_TIMEOUT) as engine:
        await collect(engine, "measured", [1, 2], SamplingParams(max_tokens=5))
        runner.gate = threading.Semaphore(0)
        yield engine, runner


@pytest.mark.parametrize("stuck", [False, True], indirect=True, ids=["synchronous", "overlapped"])
async def test_a_stuck_step_ends_its_streams(
    stuck: tuple[AsyncEngine, StubRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cause that fails over; the engine refuses others until the step returns."""
    engine, runner = stuck
    monkeypatch.setattr(watchdog_module, "LOST_AFTER", 1000)
    results = await asyncio.gather(*(collect(engine, name, [1], LONG) for name in "ab"))
    for token_ids, finish, _ in results:
        assert token_ids == []
        assert finish.reason is FinishReason.ABORT
        assert isinstance(finish.error, EngineUnavailable)
    assert not engine.healthy
    with pytest.raises(EngineUnavailable):
        await anext(engine.generate("c", [1], LONG))
    assert runner.gate is not None
    runner.gate.release(100)
    await until(lambda: engine.healthy)
    token_ids, _, _ = await collect(engine, "a", [1], SamplingParams(max_tokens=3))
    assert token_ids == expected_tokens([1], 3)
    await until(lambda: engine.load().kv_usage == 0)


async def test_readiness_follows_the_step_and_ends_when_it_is_lost(
    stuck: tuple[AsyncEngine, StubRunner],
) -> None:
    """NOT_SERVING once it is stuck; then the service fails, and liveness with it."""
    engine, _ = stuck
    reported: list[bool] = []

    async def set_ready(ready: bool) -> None:
        reported.append(ready)

    watching = asyncio.create_task(Application(engine, []).watch_ready(set_ready))
    await eventually(lambda: reported == [True], "ready at first")
    await collect(engine, "a", [1], ONE_TOKEN)
    await eventually(lambda: reported == [True, False], "not ready")
    with pytest.raises(EngineError, match="the engine broke"):
        async with asyncio.timeout(5):
            await watching
    assert set(reported[1:]) == {False}


async def test_a_stuck_step_does_not_delay_the_stop(
    stuck: tuple[AsyncEngine, StubRunner],
) -> None:
    """The thread is left, and ends with the process."""
    engine, _ = stuck
    await collect(engine, "a", [1], ONE_TOKEN)
    async with asyncio.timeout(2):
        await engine.stop()
