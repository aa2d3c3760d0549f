"""The threads that native code computes with, shared by all of an engine that does."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inference.model.native import library


class ThreadPool:
    """Threads that sleep between calls; they end with it."""

    def __init__(self, num_threads: int) -> None:
        """The caller of `run` is one of them. Raises MemoryError where the others do not start."""
        self._library = library.load()
        self._library.weir_pool_new.restype = ctypes.c_void_p
        # The engine and the embedder have threads of their own, and the pool runs one function.
        self._lock = threading.Lock()
        handle = self._library.weir_pool_new(num_threads)
        if not handle:
            raise MemoryError("the native threads have no memory or do not start")
        self.handle = ctypes.c_void_p(handle)
        """`Pool *`, for a function that `run` calls or that keeps it."""

    def run(self, function: Callable[..., int], *arguments: object) -> int:
        """Calls native code that uses the pool; waits while another does."""
        with self._lock:
            return function(*arguments)

    @contextmanager
    def if_free(self) -> Iterator[ctypes.c_void_p | None]:
        """Holds the pool for native code that can do without it; None while another uses it."""
        free = self._lock.acquire(blocking=False)
        try:
            yield self.handle if free else None
        finally:
            if free:
                self._lock.release()

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._library.weir_pool_free(self.handle)
