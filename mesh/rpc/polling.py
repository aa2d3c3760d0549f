"""How gRPC's core waits for its sockets; imported before anything that imports grpc.

Since 1.7x the core reads and writes in threads of an "event engine" and hands each message from
one of them to the thread that Python's event loop listens to. Its older poller does both in one
thread, which spares a small message two changes of thread: a quarter less CPU time for a relayed
token (docs/performance.md).
"""

from __future__ import annotations

import os

EXPERIMENTS_VARIABLE = "GRPC_EXPERIMENTS"
"""Read by the core once, when it is loaded."""

OLDER_POLLER = "-event_engine_client,-event_engine_listener"

# Whoever sets the variable knows what for.
os.environ.setdefault(EXPERIMENTS_VARIABLE, OLDER_POLLER)
