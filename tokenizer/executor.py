"""Threads for blocking work, and a limit on what may wait for them."""

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
    """Runs functions in `num_workers` threads; at most `max_waiting` more wait."""

    def __init__(self, num_workers: int, max_waiting: int) -> None:
        """Close it with `close`."""
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="tokenizer")
        self._limit = num_workers + max_waiting
        self._max_waiting = max_waiting
        self._num_pending = 0
        self._lock = threading.Lock()

    @property
    def num_pending(self) -> int:
        """Functions that run or wait."""
        return self._num_pending

    async def run(self, function: Callable[[], T]) -> T:
        """The result of `function()`, run in a thread.

        Cancelling takes a function that waits out of the line; one that runs goes on to its
        end, unheard, and counts until then. Raises MeshError OVERLOADED if the line is full.
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
        """Drops what waits and returns when the threads have ended."""
        self._threads.shutdown(cancel_futures=True)

    def _done(self, future: Future[T]) -> None:
        with self._lock:
            self._num_pending -= 1
