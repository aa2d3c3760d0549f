"""A thread pool for blocking work, with a bounded queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mesh.errors import ErrorKind, MeshError

T = TypeVar("T")

RETRY_AFTER_SECONDS = 1.0


class BoundedExecutor:
    """Runs functions in `num_workers` threads; at most `max_waiting` more wait in a queue."""

    def __init__(self, num_workers: int, max_waiting: int) -> None:
        """The caller must call `close`."""
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="tokenizer")
        self._limit = num_workers + max_waiting
        self._max_waiting = max_waiting
        self._num_pending = 0
        self._lock = threading.Lock()

    @property
    def num_pending(self) -> int:
        """Number of functions that run or wait."""
        return self._num_pending

    async def run(self, function: Callable[[], T]) -> T:
        """Runs `function()` in a thread and returns its result.

        Cancellation removes a waiting function from the queue. A function that already runs
        continues to its end and counts as pending until then; its result is discarded. Raises
        MeshError (OVERLOADED) if the queue is full.
        """
        with self._lock:
            if self._num_pending >= self._limit:
                raise MeshError(
                    ErrorKind.OVERLOADED,
                    f"the tokenizer is busy: at most {self._max_waiting} calls may wait",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            self._num_pending += 1
        future = self._threads.submit(function)
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Cancels waiting functions and blocks until the running ones have returned."""
        self._threads.shutdown(cancel_futures=True)

    def _done(self, future: Future[T]) -> None:
        with self._lock:
            self._num_pending -= 1
