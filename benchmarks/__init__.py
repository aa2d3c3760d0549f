"""Commands that measure the figures in docs/benchmarks.md."""

from __future__ import annotations

from mesh.rpc.polling import use_epoll1_engine

use_epoll1_engine()  # as the services do; before a script imports grpc
