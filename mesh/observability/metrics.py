"""Prometheus metrics that every gRPC service has, and the small HTTP server that shows them."""

from __future__ import annotations

import asyncio
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from socketserver import ThreadingMixIn
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
from opentelemetry import trace
from prometheus_client import Counter, Gauge, Histogram

from mesh.errors import GRPC_STATUS, MeshError
from mesh.observability import telemetry
from mesh.observability.exposition import expose
from mesh.process.threaded_server import serve_in_thread

_RPC_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

# No label is called `service`: the Prometheus Operator gives every target one of that name and
# would rename ours.
RPC_DURATION = Histogram(
    "mesh_rpc_server_duration_seconds",
    "Time from the arrival of an RPC to its end, streams included.",
    ["rpc_service", "rpc_method", "code"],
    buckets=_RPC_SECONDS,
)
RPC_ACTIVE = Gauge(
    "mesh_rpc_server_active", "RPCs that are being served.", ["rpc_service", "rpc_method"]
)
RPC_CLIENT_DURATION = Histogram(
    "mesh_rpc_client_duration_seconds",
    "Time from the start of an RPC to a neighbour to its end, streams and the network included.",
    ["rpc_service", "rpc_method", "code"],
    buckets=_RPC_SECONDS,
)
ERRORS = Counter(
    "mesh_errors_total", "RPCs that ended in an error, by ErrorKind.", ["rpc_service", "kind"]
)
EVENT_LOOP_LAG = Histogram(
    "mesh_event_loop_lag_seconds",
    "How much later than asked the event loop runs a timer, looked at ten times a second.",
    ["component"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
BUILD_INFO = Gauge(
    "mesh_build_info",
    "Always 1; its labels say which of the four services this is, and what it was built from.",
    ["component", "version", "python_version"],
)

UNWATCHED_SERVICES = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
)
"""Asked all the time, and answered by libraries: they are neither counted nor traced."""

LIVENESS_TIMEOUT_SECONDS = 2.0
"""How long the event loop may take to answer before the process counts as stuck."""

Metric = TypeVar("Metric", Counter, Gauge, Histogram)
Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


@cache
def labelled(metric: Metric, *values: str) -> Metric:
    """The metric under these labels, looked up once: to find it takes longer than to count."""
    return metric.labels(*values)


def tell_build(component: str) -> None:
    """Shows what this process is; `component` is the service's name."""
    BUILD_INFO.labels(component, telemetry.weir_version(), platform.python_version()).set(1)


def exemplar() -> dict[str, str] | None:
    """For `observe`: the trace id, so that a bucket leads to its trace; None if not recorded."""
    if telemetry.silent:
        return None
    span = trace.get_current_span().get_span_context()
    if not span.trace_flags.sampled:
        return None
    return {"trace_id": trace.format_trace_id(span.trace_id)}


class ClientCall:
    """Observes the duration of a call from when this is made, and how it ends.

    A context manager that ends with its block, or whoever makes one calls `end`.
    """

    __slots__ = ("_method", "_started", "_trace_id")

    def __init__(self, method: str) -> None:
        """`method` is `package.Service/Method`."""
        self._method = method
        self._started, self._trace_id = time.monotonic(), exemplar()

    def __enter__(self) -> ClientCall:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """The call has ended, well or with `error`."""
        seconds = time.monotonic() - self._started
        service, _, name = self._method.partition("/")
        if service not in UNWATCHED_SERVICES:
            took = labelled(RPC_CLIENT_DURATION, service, name, _code_of(error).name)
            took.observe(seconds, self._trace_id)


def _code_of(error: BaseException | None) -> grpc.StatusCode:
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, MeshError):
        return GRPC_STATUS[error.kind]
    return grpc.StatusCode.UNKNOWN if isinstance(error, Exception) else grpc.StatusCode.CANCELLED


@contextmanager
def metrics_server(address: str, loop: asyncio.AbstractEventLoop) -> Iterator[int]:
    """Serves `/metrics` and `/livez` from a thread, so that a stuck loop shows; gives the port.

    `/livez` is 200 while `loop` still turns and 503 once it does not.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server_class = type("_Server", (_ThreadingServer,), {"address_family": family})
    server: WSGIServer = make_server(
        host, int(port), _application(loop), server_class, _QuietHandler
    )
    with serve_in_thread(server, "metrics") as bound_port:
        yield bound_port


def _application(
    loop: asyncio.AbstractEventLoop,
) -> Callable[[Environ, StartResponse], Iterable[bytes]]:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            body, content_type = expose(environ.get("HTTP_ACCEPT", ""))
            start_response("200 OK", [("Content-Type", content_type)])
            return [body]
        if path == "/livez":
            alive = _turns(loop)
            return _plain(start_response, "200 OK" if alive else "503 Service Unavailable")
        return _plain(start_response, "404 Not Found")

    return application


def _plain(start_response: StartResponse, status: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{status.partition(' ')[2].lower()}\n".encode()]


def _turns(loop: asyncio.AbstractEventLoop) -> bool:
    answered = threading.Event()
    try:
        loop.call_soon_threadsafe(answered.set)
    except RuntimeError:  # the loop is closed
        return False
    return answered.wait(LIVENESS_TIMEOUT_SECONDS)


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """One short-lived thread a scrape, so that a stuck probe holds up no other."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    """Scrapes are not worth a log line."""

    def log_message(self, format: str, *args: object) -> None:
        pass
