"""One inference engine: its connection, health, model, and token streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

import grpc.aio

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.peers.change_report import ChangeReport
from mesh.rpc.peers.health_watch import Health
from mesh.rpc.tls import NO_TLS, TlsFiles
from orchestrator.generation import ModelInfo, ReplicaAdapters
from orchestrator.routing.agreement import can_replace
from orchestrator.routing.backends.backend import Backend, GenerateCall, TokenPair, TokenStream
from orchestrator.routing.backends.connection import EngineConnection
from orchestrator.routing.backends.target import EngineProtocol, EngineTarget
from orchestrator.routing.circuit import Circuit, SlowStart
from orchestrator.routing.first_tokens import FirstTokens

logger = logging.getLogger("orchestrator.replica")

RETRY_SECONDS = 0.2
"""Least time between the starts of two health watches of a replica."""

UNKNOWN_RETRY_SECONDS = 5.0
"""Delay before an address without a known engine is tried again."""

CONFIRM_SECONDS = 1.0
"""Timeout of the health check of a replica that was just lost; enough for a reconnection."""


class Replica:
    """An engine at one address. It becomes ready only while `watch` runs."""

    def __init__(
        self,
        address: str,
        on_change: Callable[[], None],
        tls: TlsFiles = NO_TLS,
        target: EngineTarget | None = None,
    ) -> None:
        """`on_change` is called when `ready` changes.

        `target` is what the address was found by; a TLS certificate is for its host.
        """
        self.address = address
        self.model: ModelInfo | None = None
        self.adapters = ReplicaAdapters()
        self.outstanding_tokens = 0
        """Prompt and completion tokens of this orchestrator's requests on the replica."""
        self.retired = False
        """No name resolves to it any more: it gets new requests only if no other replica can take
        them; running streams go on."""
        self.circuit = Circuit()
        self.slow_start = SlowStart()
        self.first_tokens = FirstTokens()
        self._serving = False
        self._backend: Backend | None = None
        """None until the engine's protocol is known."""
        self._on_change = on_change
        self._target = target or EngineTarget(address)
        self._connection = EngineConnection(address, self._target, tls)
        self._report = ChangeReport("replica", address)

    @property
    def ready(self) -> bool:
        """Whether it can take requests, as far as is known."""
        return self._serving and self.model is not None

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The engine's model, and its LoRA adapters; empty while they are unknown."""
        return () if self.model is None else (self.model, *self.adapters.models)

    def serves(self, model: ModelInfo) -> bool:
        """Whether it can run, or continue, requests for exactly this model or adapter."""
        return any(can_replace(each, model) for each in self.models)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the engine, for calls outside its protocol."""
        return self._connection.channel

    @property
    def may_report_cache(self) -> bool:
        """Whether the engine may report the changes of its prefix cache: not by HTTP."""
        return self._target.protocol is not EngineProtocol.VLLM_HTTP

    @property
    def resumes_constraints(self) -> bool:
        """Whether an output with a form can continue here after tokens of another engine."""
        return self._backend is not None and self._backend.resumes_constraints

    async def watch(self) -> None:
        """Watches the engine's health until cancelled, then closes the connection."""
        try:
            while True:
                began, delay = time.monotonic(), RETRY_SECONDS
                try:
                    await self._follow_health()
                except MeshError as error:
                    logger.debug("health watch failed", extra={"error": str(error)})
                    if error.kind is ErrorKind.UNIMPLEMENTED:
                        delay = UNKNOWN_RETRY_SECONDS
                        await self._not_an_engine(error)
                except Exception:
                    # The watch must continue, or the replica would never become ready again.
                    logger.exception(
                        "unexpected error in health watch", extra={"address": self.address}
                    )
                self._set_health(Health.UNREACHABLE)
                # A connection that ends at its greatest age is replaced at once.
                await asyncio.sleep(max(0.0, began + delay - time.monotonic()))
        finally:
            self._set_health(Health.UNREACHABLE)
            self._report.cancel()
            await self._connection.close()

    def suspect(self) -> None:
        """Marks the replica as not ready after a failed call, until its health is known again."""
        self._set_health(Health.UNREACHABLE)
        if self._backend is not None:
            self._backend.recheck()

    async def confirm(self) -> bool:
        """Checks the health now, without waiting for the watch; returns `ready`."""
        backend = self._backend
        if backend is None:
            return False
        try:
            await self._update(backend, await backend.check(CONFIRM_SECONDS))
        except MeshError as error:
            logger.debug("health check failed", extra={"error": str(error)})
        return self.ready

    def generate(self, call: GenerateCall) -> TokenStream:
        """A token stream, to be entered. Only for a replica that is or was ready."""
        assert self._backend is not None, "the replica was ready"
        return self._backend.generate(call)

    async def embed(
        self, inputs: Sequence[Sequence[int]], model_sha256: str = ""
    ) -> list[Sequence[float]]:
        """One vector for each of at most 64 inputs. Raises MeshError."""
        assert self._backend is not None, "the replica was ready"
        return await self._backend.embed(inputs, model_sha256)

    async def score(self, pairs: Sequence[TokenPair], model_sha256: str = "") -> Sequence[float]:
        """One score for each of at most 64 pairs, by a cross-encoder. Raises MeshError."""
        assert self._backend is not None, "the replica was ready"
        return await self._backend.score(pairs, model_sha256)

    async def refresh_adapters(self) -> None:
        """Asks the engine for its adapters again, and reports a change. Raises MeshError."""
        if self._backend is None or self.model is None:
            return
        adapters = await self._backend.adapters()
        if adapters != self.adapters and self.model is not None:
            self.adapters = adapters
            self._on_change()

    async def load_adapter(self, name: str, path: str, copied_sha256: str = "") -> None:
        """Loads a LoRA adapter; `copied_sha256` is its digest in another replica.

        Raises MeshError.
        """
        assert self._backend is not None, "the replica was ready"
        await self._backend.load_adapter(name, path, copied_sha256)

    async def unload_adapter(self, name: str) -> None:
        """Forgets a LoRA adapter. Raises MeshError."""
        assert self._backend is not None, "the replica was ready"
        await self._backend.unload_adapter(name)

    async def _follow_health(self) -> None:
        backend = self._backend = await self._connection.backend()
        async with aclosing(backend.health()) as states:
            async for serving in states:
                await self._update(backend, serving)

    async def _not_an_engine(self, error: MeshError) -> None:
        logger.error(
            "no engine at this address", extra={"address": self.address, "error": error.message}
        )
        self._set_health(Health.UNREACHABLE)
        self._backend = None
        await self._connection.forget()

    async def _update(self, backend: Backend, serving: bool) -> None:
        if serving and self.model is None:
            model = await backend.model()
            self.adapters = await backend.adapters()
            self.model = model
        self._set_health(Health.SERVING if serving else Health.NOT_SERVING)

    def _set_health(self, health: Health) -> None:
        serving = health is Health.SERVING
        if serving == self._serving:
            return
        self._serving = serving
        if serving:
            self.slow_start.restart()
        else:
            # It may serve another model when it comes back.
            self.model = None
            self.adapters = ReplicaAdapters()
        self._report.changed(health)
        self._on_change()
