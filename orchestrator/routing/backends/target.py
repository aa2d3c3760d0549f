"""Addresses of engines, which may name the protocol that an engine speaks."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from mesh.rpc.targets import with_default_port


class EngineProtocol(StrEnum):
    """The protocols; each value is the scheme of an address. Without one, it is found out."""

    WEIR = "weir"
    """`mesh.v1.InferenceService`."""
    VLLM_GRPC = "vllm+grpc"
    """`vllm.grpc.engine.VllmEngine`, without TLS, which vLLM does not offer."""
    VLLM_HTTP = "vllm+http"
    """vLLM's HTTP server."""


DEFAULT_PORTS = {
    EngineProtocol.WEIR: 50053,
    EngineProtocol.VLLM_GRPC: 50051,
    EngineProtocol.VLLM_HTTP: 8000,
}


class EngineTarget(NamedTuple):
    """Where engines are: each address that the name resolves to is one."""

    address: str
    """HOST:PORT."""
    protocol: EngineProtocol | None = None
    """None: found by the engine's health service."""

    def __str__(self) -> str:
        return f"{self.protocol}://{self.address}" if self.protocol else self.address

    @property
    def host(self) -> str:
        """The name, without port and brackets."""
        return self.address.rpartition(":")[0].strip("[]")


def split_model(text: str) -> tuple[str, str]:
    """The model and the target of `MODEL=TARGET`; an empty model if there is none."""
    model, _, target = text.strip().rpartition("=")
    return model.strip(), target.strip()


def parse_target(text: str) -> EngineTarget:
    """The target of `HOST`, `HOST:PORT` or `SCHEME://HOST:PORT`. Raises ValueError."""
    scheme, found, host = text.rpartition("://")
    if not found:
        return EngineTarget(with_default_port(host, DEFAULT_PORTS[EngineProtocol.WEIR]))
    if scheme not in list(EngineProtocol):
        schemes = ", ".join(f"{each}://" for each in EngineProtocol)
        raise ValueError(
            f"the scheme of an engine's address must be one of {schemes}, given {text}"
        )
    if not host or "/" in host:
        raise ValueError(f"an engine's address must be {scheme}://HOST:PORT, given {text}")
    protocol = EngineProtocol(scheme)
    return EngineTarget(with_default_port(host, DEFAULT_PORTS[protocol]), protocol)
