"""Runs a service from start to exit: load, listen, serve; on a signal drain, stop, flush.

    if __name__ == "__main__":
        run("tokenizer", settings, application)

An application is an asynchronous context manager: on entry it loads and warms up and yields a
`Service`; on exit it stops its components.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NoReturn, Protocol

import grpc.aio
import uvloop

from mesh.errors import MeshError
from mesh.observability import log, loop_lag, metrics, telemetry
from mesh.observability.metrics import metrics_server
from mesh.process import cpu_scheduling, garbage_collection
from mesh.process.settings import (
    STARTUP_FAILURE,
    ServiceSettings,
    unknown_variables,
    variable_name,
)
from mesh.rpc.kept_traces import kept_traces, passing_on
from mesh.rpc.server import Server, Servicer
from mesh.rpc.targets import AddressError, at_port
from mesh.rpc.tls import TlsError, TlsFiles

logger = logging.getLogger("mesh.process.lifecycle")

SetReady = Callable[[bool], Awaitable[None]]


class StartupError(Exception):
    """The service cannot start; the message names the setting to change."""


class Service(Protocol):
    """The interface of what an application yields."""

    @property
    def servicers(self) -> Sequence[Servicer]:
        """The services to serve."""
        ...

    def called_channels(self) -> Iterable[grpc.aio.Channel]:
        """The channels to the processes that this service calls at present."""
        ...

    async def watch_ready(self, set_ready: SetReady) -> None:
        """Call `set_ready` whenever readiness changes, until cancelled."""
        ...


Application = Callable[[], AbstractAsyncContextManager[Service]]


def run(name: str, settings: ServiceSettings, application: Application) -> None:
    """Run a gRPC service until SIGTERM or SIGINT. Exits with status 3 if it cannot start."""
    run_process(name, settings, lambda stop: _serve_grpc(name, settings, application, stop))


def run_process(
    name: str, settings: ServiceSettings, serve: Callable[[asyncio.Event], Awaitable[None]]
) -> None:
    """Run `serve`, which returns when it has drained, with logs, telemetry and signal handlers.

    The first signal sets the event that `serve` is called with. The second one kills the process.
    """
    log.configure(name, settings.log_level, settings.log_format)
    for variable, similar in unknown_variables(type(settings)).items():
        logger.warning(
            "unknown variable ignored", extra={"variable": variable, "similar": similar or None}
        )
    cpu_scheduling.request_slice()  # before other threads start, as they inherit it
    try:
        provider = telemetry.start(name)
    except ValueError as error:
        _cannot_start(str(error))
    metrics.set_build_info(name)
    try:
        uvloop.run(_until_signal(name, serve))
    except AddressError as error:
        _cannot_start(_address_problem(settings, error))
    except (StartupError, OSError, MeshError, TlsError) as error:
        _cannot_start(str(error))
    finally:
        telemetry.shut_down(provider)
        # Skips the full collection at interpreter exit, which takes half a second with torch.
        gc.freeze()
    logger.info("stopped")


def _cannot_start(problem: str) -> NoReturn:
    logger.error("cannot start", extra={"error": problem})
    sys.exit(STARTUP_FAILURE)


def _address_problem(settings: ServiceSettings, error: AddressError) -> str:
    """The error, with the variable of the address and what to do."""
    variable = next(
        (
            variable_name(type(settings), field)
            for field in ("listen", "metrics_listen", "health_listen", "peers_listen")
            if getattr(settings, field, None) == error.address
        ),
        "the address",
    )
    if error.errno == errno.EADDRINUSE:
        port = error.address.rpartition(":")[2]
        remedy = f"stop the process that uses port {port}, or set {variable} to another port"
    else:
        remedy = f"set {variable} to an address and a port that this process may use"
    return f"{error}; {remedy}"


async def _until_signal(name: str, serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("second signal, exiting at once", extra={"signal": number.name})
            sys.stderr.flush()
            # Not sys.exit, which would wait for tasks and threads that hang.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        logger.info("signal received, draining", extra={"signal": number.name})
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    async with loop_lag.measure(name):
        await serve(stop)


async def _serve_grpc(
    name: str, settings: ServiceSettings, application: Application, stop: asyncio.Event
) -> None:
    failed = threading.Event()
    with metrics_server(settings.metrics_listen, asyncio.get_running_loop(), failed):
        async with _entered_unless(stop, application()) as entered:
            if entered is None:
                return
            service, holding = entered
            kept = kept_traces(service.called_channels)
            servicers = (*service.servicers, *([] if kept is None else [kept.servicer]))
            server = Server(servicers, TlsFiles.of(settings))
            port = await server.start(settings.listen, settings.health_listen)
            logger.info("listening", extra={"address": at_port(settings.listen, port)})
            watching = asyncio.create_task(service.watch_ready(server.set_ready), name="ready")
            try:
                async with garbage_collection.collect_on_timer(), passing_on(kept):
                    await _first(stop, watching, holding)
            except Exception:
                # Should the process not be able to end, liveness probes restart it.
                failed.set()
                raise
            finally:
                num_aborted = await server.drain(settings.drain_seconds)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                logger.info("drained", extra={"num_aborted": num_aborted})


@asynccontextmanager
async def _entered_unless(
    stop: asyncio.Event, application: AbstractAsyncContextManager[Service]
) -> AsyncIterator[tuple[Service, asyncio.Task[None]] | None]:
    """Enter the application; yields None if a signal arrives while it loads.

    Also yields the task in which the application runs: it ends early only if the application
    fails. The same task enters and leaves the application, as task groups require.
    """
    entered: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        async with application as service:
            entered.set_result(service)
            await leave.wait()

    holding = asyncio.create_task(hold(), name="application")
    await _first(stop, entered, holding)
    if not entered.done():
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        yield None
        return
    try:
        yield entered.result(), holding
    finally:
        leave.set()
        await holding


async def _first(stop: asyncio.Event, *others: asyncio.Future[Any]) -> None:
    """Wait for `stop` or for any of `others`; raises the exception of one that failed."""
    waiter = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({waiter, *others}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
    for other in others:
        if other.done() and not other.cancelled():
            other.result()
