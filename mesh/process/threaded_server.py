"""Runs an HTTP server of the standard library in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer

_POLL_SECONDS = 0.1
"""Interval at which the server checks for shutdown: the maximum time to leave the block."""


@contextmanager
def serve_in_thread(server: HTTPServer, name: str) -> Iterator[int]:
    """Serve inside the block, in a thread called `name`; yields the port. Closes `server`."""
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_SECONDS,), name=name, daemon=True
    )
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
