"""What the orchestrator needs of an inference engine, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from opentelemetry.trace import Span

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.tokens import TokenChunk
from orchestrator.generation import ModelInfo, ReplicaAdapters

CHECK_SECONDS = 5.0
"""Timeout of one question about an engine's health, model or load."""

LOAD_ADAPTER_SECONDS = 300.0
"""Timeout of the loading of a LoRA adapter, its download included."""


class WithoutAdapters:
    """The part of a backend whose protocol cannot load LoRA adapters."""

    async def adapters(self) -> ReplicaAdapters:
        return ReplicaAdapters()

    async def load_adapter(self, name: str, path: str, copied_sha256: str = "") -> None:
        raise MeshError(ErrorKind.UNIMPLEMENTED, "the engine cannot load LoRA adapters")

    async def unload_adapter(self, name: str) -> None:
        raise MeshError(ErrorKind.UNIMPLEMENTED, "the engine cannot unload LoRA adapters")


class EngineLoad(NamedTuple):
    """The load that an engine reports about itself, from all its clients."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    """Fraction of the KV cache in use, 0 to 1."""


class GenerateCall(NamedTuple):
    """A generation as an engine gets it."""

    token_ids: Sequence[int]
    """The prompt, and after it the tokens that other engines have generated."""
    sampling: SamplingParams
    """Its limits count from the end of the prompt, resumed tokens included."""
    num_resumed_tokens: int = 0
    """Number of ids at the end of `token_ids` that were generated before."""
    parent: Span | None = None
    """Parent of the call's span; None: the current span."""
    model_sha256: str = ""
    """Digest of the model that the prompt is for; empty: any."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, without the resumed ones."""
        return len(self.token_ids) - self.num_resumed_tokens


class TokenPair(NamedTuple):
    """Two texts, encoded together for a cross-encoder."""

    token_ids: Sequence[int]
    num_first_tokens: int
    """Number of first ids whose token type is 0; the others have type 1."""


class TokenStream(Protocol):
    """The chunks of one generation, as an async iterator; the last one has the finish.

    The call runs inside the block; leaving the block ends it in the engine. Reading raises
    MeshError: kinds and `is_reported` as if the engine were Weir's own.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> TokenChunk: ...

    def cancel(self) -> None:
        """Ends the call; reading then raises MeshError (CANCELLED)."""


class Backend(Protocol):
    """One engine at one address. All calls raise MeshError."""

    resumes_constraints: bool
    """Whether an output with a form (JSON, a grammar) can continue after resumed tokens."""

    def health(self) -> AsyncGenerator[bool, None]:
        """Whether the engine takes requests: now, and again at each change or check.

        Ends, or raises MeshError, if the engine cannot be reached.
        """

    def recheck(self) -> None:
        """Makes `health` report the current state at once, or end."""

    async def check(self, timeout: float) -> bool:
        """Whether the engine takes requests now; waits for a connection up to `timeout` seconds."""

    async def model(self) -> ModelInfo:
        """The model that the engine serves."""

    async def adapters(self) -> ReplicaAdapters:
        """The LoRA adapters that the engine serves."""

    async def load_adapter(self, name: str, path: str, copied_sha256: str = "") -> None:
        """Loads a LoRA adapter; `copied_sha256` is its digest in another replica."""

    async def unload_adapter(self, name: str) -> None:
        """Forgets a LoRA adapter."""

    async def load(self) -> EngineLoad:
        """The engine's current load."""

    def generate(self, call: GenerateCall) -> TokenStream:
        """A token stream, to be entered."""

    async def embed(
        self, inputs: Sequence[Sequence[int]], model_sha256: str = ""
    ) -> list[Sequence[float]]:
        """One vector for each of at most 64 inputs."""

    async def score(self, pairs: Sequence[TokenPair], model_sha256: str = "") -> Sequence[float]:
        """One score for each of at most 64 pairs. UNIMPLEMENTED unless it is a cross-encoder."""

    async def close(self) -> None:
        """Ends all calls."""
