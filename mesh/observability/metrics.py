"""Prometheus metrics that every service has, and the HTTP server of /metrics and /livez."""

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
from prometheus_client import Counter, Gauge, Histogram

from mesh.errors import GRPC_STATUS, MeshError
from mesh.observability import telemetry
from mesh.observability.exposition import expose, wanted_by
from mesh.process.threaded_server import serve_in_thread
from mesh.rpc.targets import AddressError

_RPC_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

# No label is called `service`: the Prometheus Operator adds a label of that name to every target
# and would rename this one.
RPC_DURATION = Histogram(
    "mesh_rpc_server_duration_seconds",
    "Time from the arrival of an RPC to its end, including streams.",
    ["rpc_service", "rpc_method", "code"],
    buckets=_RPC_SECONDS,
)
RPC_ACTIVE = Gauge("mesh_rpc_server_active", "RPCs in progress.", ["rpc_service", "rpc_method"])
RPC_CLIENT_DURATION = Histogram(
    "mesh_rpc_client_duration_seconds",
    "Time from the start of a client RPC to its end, including streams and the network.",
    ["rpc_service", "rpc_method", "code"],
    buckets=_RPC_SECONDS,
)
ERRORS = Counter(
    "mesh_errors_total", "RPCs that ended in an error, by ErrorKind.", ["rpc_service", "kind"]
)
EVENT_LOOP_LAG = Histogram(
    "mesh_event_loop_lag_seconds",
    "Delay of a timer in the event loop, measured ten times a second.",
    ["component"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
BUILD_INFO = Gauge(
    "mesh_build_info",
    "Always 1; the labels are the service, its version and its Python version.",
    ["component", "version", "python_version"],
)

UNOBSERVED_SERVICES = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "mesh.v1.TraceService"}
)
"""Services whose frequent calls have neither metrics nor traces."""

LIVENESS_TIMEOUT_SECONDS = 2.0
"""Maximum time for the event loop to respond before /livez reports 503."""

Metric = TypeVar("Metric", Counter, Gauge, Histogram)
Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


@cache
def labelled(metric: Metric, *values: str) -> Metric:
    """The metric with these label values, cached: the lookup costs more than an observation."""
    return metric.labels(*values)


def set_build_info(component: str) -> None:
    """Set the build info of this process; `component` is the service's name."""
    BUILD_INFO.labels(component, telemetry.weir_version(), platform.python_version()).set(1)


def exemplar() -> dict[str, str] | None:
    """The trace id as an exemplar for `observe`; None unless it is decided that it is exported."""
    return {"trace_id": telemetry.trace_id()} if telemetry.is_exported() else None


def observe_rpc(service: str, method: str, code: grpc.StatusCode, seconds: float) -> None:
    """Record the end of a served RPC; call it inside its span."""
    labelled(RPC_DURATION, service, method, code.name).observe(seconds, exemplar())


class ClientCall:
    """Observes the duration and status of a client call, from construction to `end`.

    As a context manager it ends with its block.
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
        """Record the end of the call; None is success."""
        seconds = time.monotonic() - self._started
        service, _, name = self._method.partition("/")
        if service not in UNOBSERVED_SERVICES:
            duration = labelled(RPC_CLIENT_DURATION, service, name, _code_of(error).name)
            duration.observe(seconds, self._trace_id)


def _code_of(error: BaseException | None) -> grpc.StatusCode:
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, MeshError):
        return GRPC_STATUS[error.kind]
    return grpc.StatusCode.UNKNOWN if isinstance(error, Exception) else grpc.StatusCode.CANCELLED


@contextmanager
def metrics_server(
    address: str, loop: asyncio.AbstractEventLoop, failed: threading.Event | None = None
) -> Iterator[int]:
    """Serve `/metrics` and `/livez` from a thread inside the block; yields the port.

    `/livez` is 200 while `loop` responds and `failed` is not set, else 503. Raises
    AddressError.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server_class = type("_Server", (_ThreadingServer,), {"address_family": family})
    try:
        server: WSGIServer = make_server(
            host, int(port), _application(loop, failed), server_class, _QuietHandler
        )
    except OSError as error:
        raise AddressError(address, error) from error
    with serve_in_thread(server, "metrics") as bound_port:
        yield bound_port


def _application(
    loop: asyncio.AbstractEventLoop, failed: threading.Event | None
) -> Callable[[Environ, StartResponse], Iterable[bytes]]:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            wanted = wanted_by(
                environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
            )
            scraped = expose(wanted)
            start_response("200 OK", list(scraped.headers.items()))
            return [scraped.body]
        if path == "/livez":
            alive = not (failed is not None and failed.is_set()) and _responds(loop)
            return _plain(start_response, "200 OK" if alive else "503 Service Unavailable")
        return _plain(start_response, "404 Not Found")

    return application


def _plain(start_response: StartResponse, status: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{status.partition(' ')[2].lower()}\n".encode()]


def _responds(loop: asyncio.AbstractEventLoop) -> bool:
    answered = threading.Event()
    try:
        loop.call_soon_threadsafe(answered.set)
    except RuntimeError:  # the loop is closed
        return False
    return answered.wait(LIVENESS_TIMEOUT_SECONDS)


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """Uses a thread for each request, so that a stuck client does not block others."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    """Does not log requests."""

    def log_message(self, format: str, *args: object) -> None:
        pass
