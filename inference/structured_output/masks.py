"""Token bitmasks of the constrained rows of a step, computed while the model runs."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import abc, deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.engine.threads import available_cpus
from inference.scheduler.scheduler_output import ScheduledSequence
from inference.structured_output.matcher import Matcher

logger = logging.getLogger(__name__)

Bitmasks = NDArray[np.int32]
"""[num_rows, vocab_size / 32, rounded up]: bit i of column c is token 32 c + i, 1 if allowed."""

MAX_SECONDS = 0.5
"""Most CPU time of one sequence's masks in a step. The library limits most masks to some
milliseconds, but not all; a sequence that exceeds this ends, and delays the others once."""


class Masks(NamedTuple):
    """The constrained rows of a step, with one bitmask for each."""

    rows: list[int]
    bitmasks: Bitmasks


class _Job(NamedTuple):
    """The masks of one sequence, in the bitmasks from `begin` on."""

    scheduled: ScheduledSequence
    matcher: Matcher
    completion: list[int]
    begin: int

    @property
    def end(self) -> int:
        return self.begin + 1 + len(self.scheduled.draft_token_ids)


class _Running(NamedTuple):
    """What a thread computes now, and its CPU time when it began."""

    job: _Job
    clock: int
    began: float

    @property
    def seconds(self) -> float:
        return time.clock_gettime(self.clock) - self.began


class MaskWorker:
    """Computes bitmasks in background threads, which end with this object.

    The library releases the GIL, so the forward pass runs at the same time.
    """

    def __init__(self, vocab_size: int) -> None:
        self._num_columns = -(-vocab_size // 32)
        # As many as the library itself would use: the other CPUs run the event loop.
        self.num_threads = max(1, available_cpus() * 4 // 5)
        self._threads = self._new_threads()

    def start(self, sampling: abc.Sequence[ScheduledSequence]) -> PendingMasks | None:
        """Starts computing the masks of a step that samples these sequences.

        Returns None if no sequence is constrained. The sequences must not change before the
        result is available.
        """
        if all(scheduled.sequence.matcher is None for scheduled in sampling):
            return None
        rows: list[int] = []
        jobs: list[_Job] = []
        row = 0
        for scheduled in sampling:
            sequence = scheduled.sequence
            num_rows = 1 + len(scheduled.draft_token_ids)
            if sequence.matcher is not None:
                num_known = sequence.num_prompt_tokens + sequence.matcher.num_consumed
                new = list(sequence.token_ids[num_known:])
                jobs.append(_Job(scheduled, sequence.matcher, new, len(rows)))
                rows += range(row, row + num_rows)
            row += num_rows
        # All zeros, so that no token is sampled without its mask. The rows after an invalid draft
        # stay zero, and are discarded.
        bitmasks: Bitmasks = np.zeros((len(rows), self._num_columns), dtype=np.int32)
        return PendingMasks(self, rows, bitmasks, jobs)

    def submit(self, work: abc.Callable[[], None]) -> Future[None]:
        """Runs `work` in a thread; at most `num_threads` calls of a step run at once."""
        return self._threads.submit(work)

    def replace_threads(self) -> None:
        """Leaves the threads to what they compute, after which they end, and starts others."""
        self._threads.shutdown(wait=False)
        self._threads = self._new_threads()

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.num_threads, thread_name_prefix="masks")


class PendingMasks:
    """The masks of one step, which threads are computing, one sequence after another."""

    def __init__(
        self, worker: MaskWorker, rows: list[int], bitmasks: Bitmasks, jobs: list[_Job]
    ) -> None:
        self._worker = worker
        self._rows = rows
        self._bitmasks = bitmasks
        self._address: int = bitmasks.ctypes.data
        self._num_bytes: int = bitmasks.strides[0]
        """Of one row."""
        self._lock = threading.Lock()
        """Guards the next three."""
        self._waiting = deque(jobs)
        self._running: dict[int, _Running] = {}
        """What each thread computes; a thread does not end while it is in here."""
        self._abandoned: set[int] = set()
        """Threads that take no more jobs."""
        self._threads: dict[int, Future[None]] = {}
        self._numbers = itertools.count()
        for _ in range(min(worker.num_threads, len(jobs))):
            self._start_thread()

    def result(self) -> Masks:
        """Waits for the masks. A sequence whose mask takes too long gets none, but an error."""
        try:
            for thread in self._threads.values():
                thread.result(MAX_SECONDS)
        except TimeoutError:
            return self._without_slow()
        return Masks(self._rows, self._bitmasks)

    def _without_slow(self) -> Masks:
        """The masks once each thread has ended or exceeds the time."""
        slow: list[_Job] = []
        while wait(self._threads.values(), MAX_SECONDS / 10).not_done:
            abandoned = self._abandon_slow()
            if abandoned:
                self._worker.replace_threads()
            for job in abandoned:
                job.matcher.fail(f"a token's mask takes more than {MAX_SECONDS} s")
                self._start_thread()
            slow += abandoned
        # A copy, because the abandoned threads still write to the original.
        bitmasks = self._bitmasks.copy()
        for job in slow:
            bitmasks[job.begin : job.end] = 0
        return Masks(self._rows, bitmasks)

    def _abandon_slow(self) -> list[_Job]:
        """Leaves the threads that exceed the time to their jobs, which it returns."""
        with self._lock:
            slow = {
                number: running.job
                for number, running in self._running.items()
                if running.seconds > MAX_SECONDS
            }
            self._abandoned.update(slow)
            for number in slow:
                del self._running[number], self._threads[number]
        return list(slow.values())

    def _start_thread(self) -> None:
        number = next(self._numbers)
        self._threads[number] = self._worker.submit(lambda: self._work(number))

    def _work(self, number: int) -> None:
        clock = time.pthread_getcpuclockid(threading.get_ident())
        while (job := self._next_job(number, clock)) is not None:
            try:
                self._compute(job)
            except BaseException as error:  # also a panic of the library, which is no Exception
                logger.exception("mask failed")
                job.matcher.fail(f"the mask failed: {type(error).__name__}")
                self._bitmasks[job.begin : job.end] = 0

    def _next_job(self, number: int, clock: int) -> _Job | None:
        """Ends a thread's job and begins its next one; None if it shall take no more."""
        with self._lock:
            self._running.pop(number, None)
            if number in self._abandoned or not self._waiting:
                return None
            job = self._waiting.popleft()
            self._running[number] = _Running(job, clock, time.clock_gettime(clock))
            return job

    def _compute(self, job: _Job) -> None:
        sequence, drafts = job.scheduled.sequence, job.scheduled.draft_token_ids
        address = self._address + job.begin * self._num_bytes
        job.matcher.fill(address, self._num_bytes, job.completion, drafts)
        if job.matcher.has_failed:
            # No token is allowed: the sequence ends with the error.
            self._bitmasks[job.begin : job.end] = 0
        elif sequence.params.min_tokens > sequence.num_completion_tokens:
            num_left = sequence.params.min_tokens - sequence.num_completion_tokens
            for mask in self._bitmasks[job.begin : job.end][:num_left]:
                _forbid(mask, sequence.stop_token_ids)


def _forbid(bitmask: NDArray[np.int32], token_ids: frozenset[int]) -> None:
    """Clears tokens in a bitmask, unless it allows no others: then the output is complete."""
    others = bitmask.view(np.uint32).copy()
    for token_id in token_ids:
        column, bit = divmod(token_id, 32)
        others[column] &= np.uint32(0xFFFFFFFF ^ (1 << bit))
    if others.any():
        bitmask[:] = others.view(np.int32)
