"""Masks of a step whose jobs take too long: each sequence gets its mask or an error."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import abc
from typing import cast

import pytest

from inference.scheduler.scheduler_output import ScheduledSequence
from inference.structured_output import masks
from inference.structured_output.masks import Masks, MaskWorker
from inference.structured_output.matcher import Matcher
from tests.inference.stub_runner import make_sequence

LIMIT = 0.05
MASK = 0b1010


class StubMatcher:
    """Writes `MASK` after `work`, which takes as long as the library would."""

    def __init__(self, work: abc.Callable[[StubMatcher], None]) -> None:
        self._work = work
        self.num_consumed = 0
        self.problem = ""
        self.began = threading.Event()
        self.ended = threading.Event()
        self.thread = 0

    def fill(
        self, address: int, num_bytes: int, new_token_ids: list[int], drafts: abc.Sequence[int]
    ) -> None:
        self.thread = threading.get_ident()
        self.began.set()
        try:
            self._work(self)
            ctypes.c_uint32.from_address(address).value = MASK
        finally:
            self.ended.set()

    def fail(self, problem: str) -> None:
        self.problem = problem

    @property
    def has_failed(self) -> bool:
        return bool(self.problem)


def use_cpu(seconds: float) -> abc.Callable[[StubMatcher], None]:
    """Work that takes this CPU time."""

    def work(_: StubMatcher) -> None:
        began = time.thread_time()
        while time.thread_time() - began < seconds:
            pass

    return work


def exceed_the_limit(matcher: StubMatcher) -> None:
    """Use CPU until the sequence has failed."""
    deadline = time.monotonic() + 20
    while not matcher.has_failed and time.monotonic() < deadline:
        pass


def quickly(_: StubMatcher) -> None:
    """Take no time."""


def masks_of(matchers: list[StubMatcher], num_threads: int) -> Masks:
    """The masks of a step that samples one token for each of these matchers."""
    worker = MaskWorker(32)
    worker.num_threads = num_threads
    worker.replace_threads()
    sampling = []
    for number, matcher in enumerate(matchers):
        sequence = make_sequence(str(number), [1, 2])
        sequence.matcher = cast("Matcher", matcher)
        sampling.append(ScheduledSequence(sequence, num_tokens=1, samples=True))
    pending = worker.start(sampling)
    assert pending is not None
    return pending.result()


def check(matchers: list[StubMatcher], result: Masks) -> None:
    """Each row is the sequence's mask, or zero with an error."""
    assert result.rows == list(range(len(matchers)))
    expected = [0 if matcher.has_failed else MASK for matcher in matchers]
    assert result.bitmasks[:, 0].tolist() == expected


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short limit, so that the tests are."""
    monkeypatch.setattr(masks, "MAX_SECONDS", LIMIT)


def test_threads_that_have_ended_are_not_measured() -> None:
    """After the first slow mask the idle threads end; a second slow mask is still found."""
    first = StubMatcher(exceed_the_limit)

    def follow(matcher: StubMatcher) -> None:
        # Uses no CPU until the other threads are replaced.
        assert first.ended.wait(20)
        exceed_the_limit(matcher)

    second = StubMatcher(follow)

    def wait_for_others(_: StubMatcher) -> None:
        assert first.began.wait(20)
        assert second.began.wait(20)  # so that each has a thread

    matchers = [StubMatcher(wait_for_others), first, second]
    check(matchers, masks_of(matchers, num_threads=3))
    assert [matcher.has_failed for matcher in matchers] == [False, True, True]


def test_a_slow_thread_takes_no_other_job() -> None:
    """With one thread, so that what it would take is computed by its successor."""
    collected = threading.Event()

    def end_after_next_began(matcher: StubMatcher) -> None:
        exceed_the_limit(matcher)
        assert following.began.wait(20)

    def wait_for_slow(_: StubMatcher) -> None:
        assert slow.ended.wait(20)
        last.began.wait(0.2)  # by the slow thread, if that went on

    def compute_last(matcher: StubMatcher) -> None:
        if matcher.thread == slow.thread:
            collected.wait(20)

    slow, following, last = matchers = [
        StubMatcher(work) for work in (end_after_next_began, wait_for_slow, compute_last)
    ]
    try:
        check(matchers, masks_of(matchers, num_threads=1))
    finally:
        collected.set()
    assert [matcher.has_failed for matcher in matchers] == [True, False, False]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_slow_and_quick_masks_together(num_threads: int) -> None:
    """Whichever exceed the limit, the others have their masks."""
    seconds = (0.0, 1.8, 1.24, 1.24, 0.6, 0.6)
    matchers = [StubMatcher(use_cpu(LIMIT * each)) for each in seconds]
    check(matchers, masks_of(matchers, num_threads))
    assert not any(matcher.has_failed for matcher in (matchers[0], *matchers[4:]))
    assert all(matcher.ended.wait(20) for matcher in matchers)


def test_a_panic_of_the_library_ends_one_sequence() -> None:
    """A panic is no `Exception`; the masks after it are computed by the same thread."""

    def panic(_: StubMatcher) -> None:
        raise BaseException("panic")

    matchers = [StubMatcher(panic), StubMatcher(quickly)]
    check(matchers, masks_of(matchers, num_threads=1))
    assert [matcher.has_failed for matcher in matchers] == [True, False]
