"""When it is worth to come back."""

from __future__ import annotations

import contextlib

import pytest

from mesh.process import backlog as backlog_module
from mesh.process.backlog import MAX_RETRY_SECONDS, Backlog
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backlog_module, "time", clock)
    monkeypatch.setattr(backlog_module.random, "uniform", lambda low, high: (low + high) / 2)
    return clock


def test_the_delay_is_tokens_ahead_over_tokens_a_second(clock: Clock) -> None:
    """With n requests running, one ends in an nth of the time that all take."""
    backlog = Backlog()
    with backlog.work() as one, backlog.work() as two:
        one.expect(600)
        two.expect(600)
        for _ in range(4):
            clock.now += 0.5
            one.done(50)
        assert backlog.tokens_per_second == 100
        assert backlog.num_ahead == 1000
        assert backlog.retry_after() == pytest.approx(1000 / 100 / 2)


def test_each_refused_caller_waits_behind_the_one_before(clock: Clock) -> None:
    """Until the time that was promised to them has come."""
    backlog = Backlog()
    with backlog.work() as work:
        work.expect(300)
        clock.now += 1
        work.done(100)
        delays = [backlog.retry_after() for _ in range(3)]
        assert delays == pytest.approx([2, 4, 6])
        clock.now += 4
        assert backlog.retry_after() == pytest.approx(4)  # one is still promised a time


def test_the_delay_is_bounded(clock: Clock) -> None:
    """However long the line."""
    backlog = Backlog()
    assert all(0 < backlog.retry_after() <= MAX_RETRY_SECONDS for _ in range(100))
    assert backlog.retry_after() == MAX_RETRY_SECONDS


def test_idle_time_is_not_measured(clock: Clock) -> None:
    """A quiet night does not make the engine look slow in the morning."""
    backlog = Backlog()
    for _ in range(3):
        with backlog.work() as work:
            work.expect(100)
            clock.now += 1
            work.done(100)
        clock.now += 3600
    assert backlog.tokens_per_second == 100


def test_what_is_left_undone_is_forgotten(clock: Clock) -> None:
    """Early ends and failures leave nothing ahead."""
    backlog = Backlog()
    with backlog.work() as other, contextlib.suppress(ValueError), backlog.work() as work:
        other.expect(5)
        work.expect(10)
        work.done(20)  # more than expected takes nothing from others
        assert backlog.num_ahead == 5
        raise ValueError("broken")
    assert (backlog.num_ahead, backlog.num_running) == (0, 0)


def test_delays_are_spread() -> None:
    """So that those who were refused together do not come back together."""
    assert len({Backlog().retry_after() for _ in range(20)}) > 10
