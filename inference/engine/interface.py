"""What the service sees of an engine, whichever engine it is.

Everything here is plain data, so that an engine can move to a process of its own. All times
are `time.monotonic()` seconds of the engine's host.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from inference.engine.errors import EngineError
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob


class PrefillChunk(NamedTuple):
    """A step that computed a piece of one sequence's prompt."""

    start: float
    end: float
    num_tokens: int
    batch_size: int
    """Sequences in that step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """When a sequence passed its stations; None where it never did."""

    arrival: float
    scheduled: float | None
    first_token: float | None
    finish: float
    prefill: tuple[PrefillChunk, ...] = ()
    """In order; after a preemption there are more, which compute the prompt anew."""


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
    """Guesses at the completion that were verified, and how many of them stood."""
    num_accepted_tokens: int = 0
    mean_batch_size: float = 0.0
    """Sequences in an average step that carried this one."""
    error: EngineError | None = None
    """The cause of an ERROR, or of an ABORT the consumer did not ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of an engine, for all sequences that it carried."""

    number: int
    start: float
    end: float
    request_ids: tuple[str, ...]
    num_prefill_tokens: int
    num_decode_tokens: int
    num_waiting: int
    kv_usage: float
    num_preemptions: int
    """Sequences that lost their blocks to this step."""
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """Every token that became ready since the consumer took the last chunk.

    The first chunk of a stream says that the sequence is accepted, and is empty unless a token is
    there at once. The last one, and only that, carries `finish`; it may carry tokens as well.
    `logprobs` is empty or as long as `token_ids`.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    prompt_logprobs: Sequence[TokenLogprob] = ()
    """With the first token, where they were asked for: of the prompt's tokens but the first."""
    finish: Finish | None = None
    intervals: Sequence[float] = ()
    """Seconds from each token, or all that one step brought, to the next, as the engine made them;
    the sequence's first one has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a caller must know of the model to send it token ids."""

    name: str
    architecture: str
    dtype: str
    device: str
    vocab_size: int
    max_context: int
    """Most tokens of prompt + completion."""
    num_parameters: int
    eos_token_ids: tuple[int, ...]
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    """The model's own defaults (generation_config.json), by `SamplingParams` field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy an engine is."""

    num_running: int
    num_waiting: int
    kv_usage: float
    """Share of KV blocks that live sequences hold, 0 to 1."""
    num_cached_tokens: int
    """Tokens whose KV the prefix cache can hand out."""
    max_num_seqs: int
    kv_capacity_tokens: int
    num_preemptions: int
    """Preemptions since the start."""
    block_size: int = 1
    """Tokens in a block of the KV cache."""


class EngineClient(Protocol):
    """An engine as the service uses it. All methods belong to one event loop."""

    @property
    def model_info(self) -> ModelInfo:
        """Raises `EngineUnavailable` before `start` is done."""
        ...

    @property
    def healthy(self) -> bool:
        """True while the engine can produce tokens; once False after `start`, it stays so."""
        ...

    async def wait_broken(self) -> None:
        """Returns once a started engine is not `healthy` any more."""
        ...

    async def start(self) -> None:
        """Load and warm up; returns when tokens can be produced. Raises `EngineError`."""
        ...

    async def stop(self, *, drain_timeout: float = 0.0) -> None:
        """Refuse new sequences, let live ones finish for `drain_timeout` s, abort the rest."""
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
    ) -> AsyncGenerator[SequenceOutput, None]:
        """Stream the completion: a chunk on acceptance, mostly empty, the finish on the last one.

        A refusal (`ContextTooLong`, `Overloaded`, …) is raised by the first `anext`. Closing or
        cancelling the generator aborts the sequence and frees its KV blocks within one step:
        wrap it in `contextlib.aclosing`. `deadline` is absolute, of `time.monotonic()`. The last
        `num_resumed_tokens` of the prompt count as completion: another replica made them.
        `on_abandoned` is told how far the sequence came if its consumer leaves before the end.
        """
        ...

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """A vector of length 1 for each input; beside what is generated, not before it.

        Raises `InvalidPrompt`, `ContextTooLong`, `Overloaded` or `EngineUnavailable`.
        """
        ...

    def load(self) -> Load:
        """The engine's load as of its last step, sequences not yet taken up included."""
        ...
