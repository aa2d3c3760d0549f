"""Settings of gRPC's core, which reads them when grpc is imported.

The epoll1 engine: by default gRPC's core reads and writes in the threads of its event engine and
hands each message to the polling thread that Python's event loop waits for. The epoll1 engine does
both in the polling thread. That saves two thread switches for each small message: a quarter less
CPU time for a relayed token (docs/performance.md).
"""

from __future__ import annotations

import os

EXPERIMENTS_VARIABLE = "GRPC_EXPERIMENTS"
"""gRPC's core reads this variable once, when it is loaded."""

EPOLL1_ENGINE = "-event_engine_client,-event_engine_listener"


def use_epoll1_engine() -> None:
    """Set the variable unless it is set already. Call it before anything imports grpc."""
    os.environ.setdefault(EXPERIMENTS_VARIABLE, EPOLL1_ENGINE)


VERBOSITY_VARIABLE = "GRPC_VERBOSITY"


def silence_core() -> None:
    """Switch the core's log off unless the variable is set; call it before anything imports grpc.

    Its lines are not JSON, and say what the services log themselves or handle: every GOAWAY and
    lost connection.
    """
    os.environ.setdefault(VERBOSITY_VARIABLE, "NONE")
