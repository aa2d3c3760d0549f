"""Server side: a grpc.aio server with health checks, reflection and `RpcInterceptor`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from mesh.rpc.interceptor import RpcInterceptor
from mesh.rpc.multiplex.service import MultiplexService
from mesh.rpc.targets import bind_error
from mesh.rpc.tls import NO_TLS, TlsFiles, server_credentials
from mesh.rpc.transport import server_options

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

MAX_CONNECTION_AGE_SECONDS = 30 * 60
"""After this time a connection is closed, so that clients resolve the replicas again."""

NOTICE_SECONDS = 0.05
"""Least time between a change of health to NOT_SERVING and the end of the connections."""

MAX_CONNECTION_AGE_GRACE_SECONDS = 15 * 60
"""Longer than any request takes."""


class Servicer(NamedTuple):
    """A service to serve: its full name, the generated registration, the implementation."""

    name: str
    register: Callable[[Any, Any], None]
    implementation: object


class _GenericHandlersOnly:
    """Registers the generic handlers of generated code, and not its registered methods.

    With registered methods, each call costs grpc.aio a check of every one of them.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.handlers += handlers
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Does nothing: the generic handlers serve the same methods."""


class Server:
    """A server with ordered start and drain. Not ready until `set_ready(True)`.

    Health has two names: "" for the process (SERVING from start to drain), and the full name of
    each service for whether it is ready.
    """

    def __init__(self, servicers: Sequence[Servicer], tls: TlsFiles = NO_TLS) -> None:
        """Register `servicers`; `start` binds and listens. Uses TLS if there is a certificate."""
        self._tls = tls
        self.interceptor = RpcInterceptor()
        self.health = HealthServicer()
        self._names = [servicer.name for servicer in servicers]
        self._server = grpc.aio.server(
            interceptors=[self.interceptor],
            options=server_options(MAX_CONNECTION_AGE_SECONDS, MAX_CONNECTION_AGE_GRACE_SECONDS),
        )
        registrar = _GenericHandlersOnly(self._server)
        for servicer in servicers:
            servicer.register(servicer.implementation, registrar)
        MultiplexService(self.interceptor.handlers_in(registrar.handlers)).add_to(registrar)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, registrar)
        self._plain_health: grpc.aio.Server | None = None
        self.health_port = 0
        """Port of the additional server of health checks, once started; 0: none."""
        reflected = [*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*reflected, reflection.SERVICE_NAME], registrar)

    async def start(self, address: str, health_address: str = "") -> int:
        """Bind to HOST:PORT and serve; returns the port. Raises AddressError or TlsError.

        `health_address` serves health checks only, without TLS.
        """
        await self.set_ready(False)
        credentials = server_credentials(self._tls) if self._tls.for_server else None
        port = _bind(self._server, address, credentials)
        if health_address:
            self._plain_health = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            health_pb2_grpc.add_HealthServicer_to_server(self.health, self._plain_health)
            self.health_port = _bind(self._plain_health, health_address)
            await self._plain_health.start()
        await self._server.start()
        return port

    async def set_ready(self, ready: bool) -> None:
        """Set the health of the services."""
        for name in self._names:
            await self.health.set(name, SERVING if ready else NOT_SERVING)

    async def drain(self, timeout: float) -> int:
        """Refuse new calls, wait up to `timeout` seconds for running ones, abort the rest.

        Returns the number of aborted calls.
        """
        await self.health.enter_graceful_shutdown()
        self.interceptor.draining = True
        num_aborted = 0
        try:
            async with asyncio.timeout(timeout):
                await self.interceptor.wait_idle()
        except TimeoutError:
            num_aborted = await self.interceptor.abort_running()
        if timeout:
            # Health watches send the change before their connections close, which would look like
            # a loss.
            await asyncio.sleep(NOTICE_SECONDS)
        await self._server.stop(grace=None)
        if self._plain_health is not None:
            await self._plain_health.stop(grace=None)
        return num_aborted


def _bind(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise bind_error(address, error) from error
