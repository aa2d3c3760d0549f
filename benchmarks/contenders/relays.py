"""What benchmarks/relay.py measures: relays of streams from engines to a client over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from benchmarks.contenders.litellm import LiteLlmProxy
from benchmarks.contenders.smg import SmgRouter
from benchmarks.harness.processes import Processes
from benchmarks.harness.stack import RELAY, Services

WEIR = "weir"


class Relay(Protocol):
    """One or more processes between an engine and a client."""

    @property
    def url(self) -> str:
        """Where the OpenAI API is served, without /v1."""
        ...

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far, by process; their sum is the relay's."""
        ...

    def memory_bytes(self) -> int:
        """Resident memory now."""
        ...


class WeirRelay(NamedTuple):
    """Gateway and orchestrator, and the tokenizer if other relays encode prompts themselves."""

    services: Services
    names: tuple[str, ...] = RELAY

    @property
    def url(self) -> str:
        return self.services.url

    def cpu_seconds(self) -> dict[str, float]:
        return {name: self.services.cpu_seconds((name,)) for name in self.names}

    def memory_bytes(self) -> int:
        return self.services.memory_bytes(self.names)


class ProcessRelay(NamedTuple):
    """A relay that is one process, or a process with children."""

    name: str
    router: SmgRouter | LiteLlmProxy

    @property
    def url(self) -> str:
        return self.router.url

    def cpu_seconds(self) -> dict[str, float]:
        return {self.name: self.router.cpu_seconds()}

    def memory_bytes(self) -> int:
        return self.router.memory_bytes()


def smg(processes: Processes, name: str, services: Services) -> Relay:
    """SMG in front of the engine that the services use."""
    engine = services.addresses["inference"]
    router = SmgRouter(processes, name, [engine], options=("--log-level", "warn"))
    router.wait_ready()
    return ProcessRelay("smg", router)


def litellm(processes: Processes, name: str, services: Services) -> Relay:
    """LiteLLM's proxy in front of the gateway, as it calls no engine by gRPC."""
    proxy = LiteLlmProxy(processes, name, services.url)
    proxy.wait_ready()
    return ProcessRelay("litellm", proxy)


CONTENDERS: Mapping[str, Callable[[Processes, str, Services], Relay]] = {
    "smg": smg,
    "litellm": litellm,
}
"""Makes a relay by name, in front of services that are ready."""
