"""The connection to one engine, and the backend of the protocol that the engine speaks."""

from __future__ import annotations

import logging

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import ErrorKind, MeshError, from_rpc_error
from mesh.rpc.channel import open_channel
from mesh.rpc.tls import NO_TLS, TlsFiles
from orchestrator.routing.backends.backend import Backend
from orchestrator.routing.backends.target import EngineProtocol, EngineTarget
from orchestrator.routing.backends.vllm_grpc.client import SERVICE as VLLM_SERVICE
from orchestrator.routing.backends.vllm_grpc.client import VllmBackend
from orchestrator.routing.backends.vllm_http.client import VllmHttpBackend
from orchestrator.routing.backends.weir import SERVICE as WEIR_SERVICE
from orchestrator.routing.backends.weir import WeirBackend

logger = logging.getLogger(__name__)

_SERVICES = {
    WEIR_SERVICE: EngineProtocol.WEIR,
    VLLM_SERVICE: EngineProtocol.VLLM_GRPC,
}
"""Names in the health service by which protocols are found, the preferred one first."""

IDENTIFY_SECONDS = 10.0
"""Timeout of a question for the protocol, so that an engine that never answers is asked again."""


class EngineConnection:
    """Holds the channel to one engine. Close it after use."""

    def __init__(self, address: str, target: EngineTarget, tls: TlsFiles = NO_TLS) -> None:
        """`address` is one of those that the target's name resolves to."""
        self._address, self._target = address, target
        # vLLM offers no TLS.
        used = NO_TLS if target.protocol is EngineProtocol.VLLM_GRPC else tls
        self.channel = open_channel(address, used, target.host)
        self._backend: Backend | None = None

    async def backend(self) -> Backend:
        """The engine's backend; waits until the engine can be reached. Raises MeshError."""
        if self._backend is None:
            self._backend = self._open(self._target.protocol or await self._identified())
        return self._backend

    async def _identified(self) -> EngineProtocol:
        try:
            return await identify(self.channel)
        except MeshError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                logger.info("engine does not answer", extra={"address": self._address})
            raise

    async def forget(self) -> None:
        """Finds the protocol again with the next use: another engine may have the address."""
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()

    async def close(self) -> None:
        """Ends all calls."""
        await self.forget()
        await self.channel.close()

    def _open(self, protocol: EngineProtocol) -> Backend:
        match protocol:
            case EngineProtocol.VLLM_HTTP:
                return VllmHttpBackend(self._address, self._target.address)
            case EngineProtocol.VLLM_GRPC:
                return VllmBackend(self.channel)
            case EngineProtocol.WEIR:
                return WeirBackend(self.channel)


async def identify(channel: grpc.aio.Channel) -> EngineProtocol:
    """The protocol of the engine at the other end, by the names in its health service.

    Waits some time until the engine can be reached. Raises MeshError: UNIMPLEMENTED if it is no
    engine, UNAVAILABLE if it does not answer.
    """
    health: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(channel)
    for service, protocol in _SERVICES.items():
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            await health.Check(request, wait_for_ready=True, timeout=IDENTIFY_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                # Usual while an engine loads its model.
                raise MeshError(ErrorKind.UNAVAILABLE, "the engine does not answer") from error
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
                raise from_rpc_error(error) from error
        else:
            return protocol
    names = " and ".join(_SERVICES)
    raise MeshError(ErrorKind.UNIMPLEMENTED, f"its health service knows none of {names}")
