"""The interface between the gRPC service and an engine, real or fake.

Everything here is plain data, so that an engine could run in a separate process. All times are
`time.monotonic()` seconds of the engine's host.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from inference.engine.block_feed import BlockFeed
from inference.engine.errors import EngineError
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.model_kind import ModelKind


class PrefillChunk(NamedTuple):
    """A step that computed a part of one sequence's prompt."""

    start: float
    end: float
    num_tokens: int
    batch_size: int
    """Sequences in that step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """When a sequence reached each stage; None for a stage that it did not reach."""

    arrival: float
    scheduled: float | None
    first_token: float | None
    finish: float
    prefill: tuple[PrefillChunk, ...] = ()
    """In order. After a preemption, more chunks follow that compute the prompt again."""

    @property
    def queue_seconds(self) -> float:
        """From arrival to the first step, or to the end."""
        return (self.finish if self.scheduled is None else self.scheduled) - self.arrival

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def prefill_seconds(self) -> float:
        """From the first step to the first token, or to the end."""
        if self.scheduled is None:
            return 0.0
        return (self.finish if self.first_token is None else self.first_token) - self.scheduled

    @property
    def decode_seconds(self) -> float:
        """From the first token to the end."""
        return 0.0 if self.first_token is None else self.finish - self.first_token

    @property
    def e2e_seconds(self) -> float:
        """From arrival to the end."""
        return self.finish - self.arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of a sequence; each accepted sequence has exactly one."""

    reason: FinishReason
    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    """Prompt tokens whose KV came from the prefix cache."""
    timings: Timings
    num_preemptions: int = 0
    num_steps: int = 0
    num_drafted_tokens: int = 0
    """Draft tokens that were verified, and how many of them were accepted."""
    num_accepted_tokens: int = 0
    mean_batch_size: float = 0.0
    """Mean number of sequences in the steps that ran this one."""
    error: EngineError | None = None
    """The cause of an ERROR, or of an ABORT that the consumer did not request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of an engine, for tracing."""

    number: int
    start: float
    end: float
    request_ids: tuple[str, ...]
    num_prefill_tokens: int
    num_decode_tokens: int
    num_waiting: int
    kv_usage: float
    num_preemptions: int
    """Sequences that were preempted to make room for this step."""
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """All tokens of a sequence that became ready since the consumer took the previous output.

    The first output of a stream means that the sequence is accepted; it is usually empty. The last
    output, and only that, has `finish`; it may have tokens as well. `logprobs` is empty or as long
    as `token_ids`.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    prompt_logprobs: Sequence[TokenLogprob] = ()
    """If requested, with the first token: one for each prompt token except the first."""
    finish: Finish | None = None
    intervals: Sequence[float] = ()
    """Inter-token latencies in seconds; none for the sequence's first token. A step that yields
    several tokens counts its time in equal shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The properties of a model that a caller needs in order to send it token ids."""

    name: str
    architecture: str
    dtype: str
    device: str
    vocab_size: int
    max_context: int
    """Most tokens of prompt and completion together."""
    num_parameters: int
    eos_token_ids: tuple[int, ...]
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    """The model's own defaults (generation_config.json), by `SamplingParams` field."""
    vocabulary_sha256: str = ""
    """Digest of the ids and their tokens (`mesh.hub.vocabulary`); empty if unknown."""
    model_sha256: str = ""
    """Digest of all that decides the tokens (`inference.model.identity`); empty if unknown."""
    kind: ModelKind = ModelKind.GENERATION
    embedding_length: int = 0
    """Number of values of an embedding; 0: unknown, or the model has none."""


class TokenPair(NamedTuple):
    """Two texts, encoded together."""

    token_ids: Sequence[int]
    num_first_tokens: int
    """Number of first ids whose token type is 0; the others have type 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """A LoRA adapter that requests can name as their model."""

    name: str
    path: str
    """The folder or hub id that it was loaded from."""
    model_sha256: str
    """As `ModelInfo.model_sha256`, of the model with this adapter."""
    is_of_settings: bool = False
    """Whether the settings name it; other replicas need no copy of it then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy an engine is."""

    num_running: int
    num_waiting: int
    """Sequences that wait, and live embedding calls."""
    kv_usage: float
    """Share of the KV-cache blocks that live sequences and inputs to embed hold, 0 to 1."""
    num_cached_tokens: int
    """Tokens in the prefix cache."""
    max_num_seqs: int
    kv_capacity_tokens: int
    num_preemptions: int
    """Since the start."""
    block_size: int = 1
    """Tokens in a block of the KV cache."""
    num_waiting_tokens: int = 0
    """Tokens of the sequences that wait, as of the last step."""
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters of running and waiting sequences, sorted."""


class EngineClient(Protocol):
    """An engine as the service uses it. Call all methods from one event loop."""

    @property
    def model_info(self) -> ModelInfo:
        """Raises `EngineUnavailable` before `start` returns."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether the engine can produce tokens. False also while a step does not return."""
        ...

    def health_changes(self) -> AsyncIterator[bool]:
        """Yield `healthy` now and at each change; ends once it stays False for good."""
        ...

    async def start(self) -> None:
        """Load the model and warm up. Raises `EngineError`."""
        ...

    async def stop(self, *, drain_timeout: float = 0.0) -> None:
        """Refuse new work, wait `drain_timeout` seconds for live sequences and embedding calls,
        abort the rest."""
        ...

    def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        num_resumed_tokens: int = 0,
        deadline: float | None = None,
        on_abandoned: Callable[[Finish], None] | None = None,
        adapter: str = "",
    ) -> AsyncGenerator[SequenceOutput, None]:
        """Stream the completion; the first output signals acceptance, the last has the finish.

        The first `anext` raises a refusal (`ContextTooLong`, `Overloaded`, …). Closing or
        cancelling the generator aborts the sequence and frees its KV blocks within one step:
        wrap it in `contextlib.aclosing`. `deadline` is in `time.monotonic()` seconds. The last
        `num_resumed_tokens` of the prompt count as completion: another replica generated them.
        `adapter` is the name of a loaded one; raises `AdapterNotFound`.
        `on_abandoned` is called with the finish so far if the consumer leaves before the end.
        """
        ...

    @property
    def adapters(self) -> Sequence[AdapterInfo]:
        """The LoRA adapters that are loaded."""
        ...

    @property
    def max_adapters(self) -> int:
        """Most adapters that can be loaded; 0: the engine serves none."""
        ...

    @property
    def allows_loading_adapters(self) -> bool:
        """Whether `load_adapter` and `unload_adapter` are allowed."""
        ...

    async def load_adapter(self, name: str, path: str, copied_sha256: str = "") -> AdapterInfo:
        """Load a LoRA adapter from a folder or the hub.

        `copied_sha256`: its digest in another replica, which it must have. Raises
        `AdaptersDisabled`, `InvalidAdapter` or `Overloaded`.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; its sequences run to their end. Raises `AdapterNotFound`."""
        ...

    def end(self, request_id: str, reason: FinishReason) -> None:
        """End a live sequence: its stream's last output has this reason, and its blocks are free
        within one step. Does nothing if no sequence with this id is live."""
        ...

    def block_feed(self) -> BlockFeed | None:
        """The changes of the prefix cache, recorded from the first call on; None without one."""
        ...

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return a vector for each input, computed in pieces beside generation.

        Cancelling ends the work within one piece. Raises `UnsupportedCall`, `InvalidPrompt`,
        `ContextTooLong`, `Overloaded`, `EngineUnavailable`, `StepFailed` or `SequenceFailed`.
        """
        ...

    async def score(self, pairs: Sequence[TokenPair]) -> list[float]:
        """Return the score of each pair of texts, by a cross-encoder; otherwise as `embed`.

        Raises `UnsupportedCall` for another model.
        """
        ...

    def load(self) -> Load:
        """The load after the last step, including sequences that are still to be added."""
        ...
