"""The thread pool of native code; an engine's decoder and sampler share it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inference.model.native import library


class ThreadPool:
    """Threads that sleep between calls and end with the object."""

    def __init__(self, num_threads: int) -> None:
        """`num_threads` includes `run`'s caller. Raises MemoryError if a thread cannot start."""
        self._library = library.load()
        self._library.weir_pool_new.restype = ctypes.c_void_p
        # The pool runs one call at a time.
        self._lock = threading.Lock()
        handle = self._library.weir_pool_new(num_threads)
        if not handle:
            raise MemoryError("the native thread pool cannot be started")
        self.handle = ctypes.c_void_p(handle)
        """`Pool *`, for native functions that run on the pool or keep a pointer to it."""

    def run(self, function: Callable[..., int], *arguments: object) -> int:
        """Calls a native function that uses the pool; waits while another call uses it."""
        with self._lock:
            return function(*arguments)

    @contextmanager
    def if_free(self) -> Iterator[ctypes.c_void_p | None]:
        """Reserves the pool for native code that can run without it; yields None if it is busy."""
        free = self._lock.acquire(blocking=False)
        try:
            yield self.handle if free else None
        finally:
            if free:
                self._lock.release()

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._library.weir_pool_free(self.handle)
