"""The serving end of a hop: a grpc.aio server with health, reflection and our interceptor."""

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
from mesh.rpc.tls import NO_TLS, TlsFiles, server_credentials
from mesh.rpc.transport import server_options

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

MAX_CONNECTION_AGE_SECONDS = 30 * 60
"""Clients look replicas up anew this often, at the latest."""

MAX_CONNECTION_AGE_GRACE_SECONDS = 15 * 60
"""Longer than any request may take."""


class Servicer(NamedTuple):
    """A service to serve: its full name, the generated registration, the implementation."""

    name: str
    register: Callable[[Any, Any], None]
    implementation: object


class _ByPath:
    """Takes what generated code registers, and has its methods found by their paths alone.

    Those that are registered one by one grpc.aio also waits for one by one: a call would cost a
    look at each of them.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Nothing: the generic handlers are the same."""


class Server:
    """A server that is started and drained in order. Not ready until `set_ready(True)`.

    Health is told in two names: "" for the process itself (SERVING from start to drain) and
    the service's own for whether it can do its work.
    """

    def __init__(self, servicers: Sequence[Servicer], tls: TlsFiles = NO_TLS) -> None:
        """Registers `servicers`; `start` binds and listens. With a certificate, over TLS."""
        self._tls = tls
        self.interceptor = RpcInterceptor()
        self.health = HealthServicer()
        self._names = [servicer.name for servicer in servicers]
        self._server = grpc.aio.server(
            interceptors=[self.interceptor],
            options=server_options(MAX_CONNECTION_AGE_SECONDS, MAX_CONNECTION_AGE_GRACE_SECONDS),
        )
        by_path = _ByPath(self._server)
        for servicer in servicers:
            servicer.register(servicer.implementation, by_path)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, by_path)
        self._plain_health: grpc.aio.Server | None = None
        self.health_port = 0
        """Where health alone is told, once started; 0: nowhere."""
        reflected = [*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*reflected, reflection.SERVICE_NAME], by_path)

    async def start(self, address: str, health_address: str = "") -> int:
        """Binds to HOST:PORT and serves; gives the port. OSError if it is taken, or TlsError.

        At `health_address` health alone is told, in plain text.
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
        """Tells health checks whether the services can do their work now."""
        for name in self._names:
            await self.health.set(name, SERVING if ready else NOT_SERVING)

    async def drain(self, timeout: float) -> int:
        """Refuses new calls, waits up to `timeout` seconds for running ones, ends the rest.

        Gives the number of calls that were cut off.
        """
        await self.health.enter_graceful_shutdown()
        self.interceptor.draining = True
        cut_off = 0
        try:
            async with asyncio.timeout(timeout):
                await self.interceptor.wait_idle()
        except TimeoutError:
            cut_off = await self.interceptor.cut_off()
        await self._server.stop(grace=None)
        if self._plain_health is not None:
            await self._plain_health.stop(grace=None)
        return cut_off


def _bind(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
