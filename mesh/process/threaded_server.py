"""A server of the standard library, beside whatever the process does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer

_POLL_SECONDS = 0.1
"""How long the end of the block may take."""


@contextmanager
def serve_in_thread(server: HTTPServer, name: str) -> Iterator[int]:
    """Serves inside the block, in a thread of this name; gives the port. Closes `server`."""
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
