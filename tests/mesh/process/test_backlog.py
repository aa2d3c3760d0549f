"""The Retry-After of refused callers."""

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


def test_the_delay_is_remaining_tokens_divided_by_speed(clock: Clock) -> None:
    """With n running requests, one ends in an n-th of the time until all are done."""
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


def test_each_refused_caller_waits_longer_than_the_previous_one(clock: Clock) -> None:
    """A caller leaves the virtual queue when its retry time has come."""
    backlog = Backlog()
    with backlog.work() as work:
        work.expect(300)
        clock.now += 1
        work.done(100)
        delays = [backlog.retry_after() for _ in range(3)]
        assert delays == pytest.approx([2, 4, 6])
        clock.now += 4
        assert backlog.retry_after() == pytest.approx(4)  # one earlier caller is still waiting


def test_the_delay_is_bounded(clock: Clock) -> None:
    """However many callers were refused."""
    backlog = Backlog()
    assert all(0 < backlog.retry_after() <= MAX_RETRY_SECONDS for _ in range(100))
    assert backlog.retry_after() == MAX_RETRY_SECONDS


def test_idle_time_is_not_measured(clock: Clock) -> None:
    """Hours without requests do not reduce the measured speed."""
    backlog = Backlog()
    for _ in range(3):
        with backlog.work() as work:
            work.expect(100)
            clock.now += 1
            work.done(100)
        clock.now += 3600
    assert backlog.tokens_per_second == 100


def test_remaining_tokens_are_removed_when_a_request_ends(clock: Clock) -> None:
    """Also if it ends early or fails."""
    backlog = Backlog()
    with backlog.work() as other, contextlib.suppress(ValueError), backlog.work() as work:
        other.expect(5)
        work.expect(10)
        work.done(20)  # more than expected takes nothing from others
        assert backlog.num_ahead == 5
        raise ValueError("broken")
    assert (backlog.num_ahead, backlog.num_running) == (0, 0)


def test_delays_have_jitter() -> None:
    """Callers that were refused together do not retry together."""
    assert len({Backlog().retry_after() for _ in range(20)}) > 10
