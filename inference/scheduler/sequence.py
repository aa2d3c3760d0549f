"""The state of one generation inside the engine."""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from inference.engine.errors import EngineError
from inference.engine.interface import Finish, PrefillChunk, Timings
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob

if TYPE_CHECKING:
    from inference.model.lora.adapted import Adapter
    from inference.structured_output.matcher import Matcher

_MASK_64 = 2**64 - 1


class SequenceStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Speculation:
    """How many draft tokens of one sequence were accepted; used by the drafter only."""

    __slots__ = ("length", "num_accepted", "num_drafted", "num_misses", "pause")

    def __init__(self) -> None:
        self.length: int | None = None
        """Draft tokens to propose next; None before the first proposal."""
        self.pause = 0
        """Steps without drafts before the next proposal."""
        self.num_misses = 0
        """Proposals in a row of which no draft was accepted."""
        self.num_drafted = 0
        self.num_accepted = 0


class Sequence:
    """Token ids, block table and counts of one request.

    The scheduler moves it between its queues. Only the block manager writes `block_table`,
    `block_hashes`, `num_committed_blocks` and `num_announced_blocks`. What a step computes of it
    is in the step's `SchedulerOutput`.

        token_ids:  |<---- prompt ---->|<---- completion ---->|
                    |<-- computed -->|<-- uncomputed -->|
    """

    __slots__ = (
        "adapter",
        "arrival_time",
        "block_hashes",
        "block_table",
        "deadline",
        "finish",
        "first_token_time",
        "group",
        "is_further",
        "matcher",
        "max_tokens",
        "num_announced_blocks",
        "num_batched_sequences",
        "num_cached_tokens",
        "num_committed_blocks",
        "num_computed_tokens",
        "num_overtaken_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_steps",
        "params",
        "prefill",
        "priority",
        "prompt_logprobs",
        "request_id",
        "scheduled_time",
        "seed",
        "speculation",
        "status",
        "stop_token_ids",
        "token_ids",
        "turn",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Iterable[int],
        params: SamplingParams,
        *,
        num_resumed_tokens: int = 0,
        eos_token_ids: Iterable[int] = (),
        deadline: float | None = None,
        adapter: Adapter | None = None,
        group: str = "",
    ) -> None:
        """The last `num_resumed_tokens` of the prompt are completion of an earlier attempt.

        `deadline` is in `time.monotonic()` seconds. `adapter` is the LoRA adapter to compute with.
        `group` names the client's request where that has several sequences; empty: it has one.
        """
        self.adapter = adapter
        self.request_id = request_id
        self.group = group or request_id
        self.params = params
        self.deadline = deadline
        self.priority = params.priority
        # Arrays, not lists: hashing a block or handing ids to the runner is one memory copy.
        self.token_ids: array[int] = array("q", prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids) - num_resumed_tokens
        self.stop_token_ids = params.stop_token_ids
        if not params.ignore_eos or params.constraint is not None:
            self.stop_token_ids = params.stop_token_ids.union(eos_token_ids)
        self.seed = secrets.randbits(64) if params.seed is None else params.seed & _MASK_64
        # Admission replaces this where the params have no limit.
        self.max_tokens = params.max_tokens or 0
        # Enforces the constraint; the engine sets it before it adds the sequence.
        self.matcher: Matcher | None = None
        # None if not requested; a resumed sequence has delivered them before its first token.
        requested = params.num_prompt_logprobs is not None and not num_resumed_tokens
        self.prompt_logprobs: list[TokenLogprob] | None = [] if requested else None
        self._init_progress()

    def _init_progress(self) -> None:
        self.status = SequenceStatus.WAITING
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.speculation = Speculation()
        self.block_table: array[int] = array("q")
        self.block_hashes: list[bytes] = []
        self.num_committed_blocks = 0
        self.num_announced_blocks = 0
        self.num_preemptions = 0
        # Tokens of the sequences that arrived later and started earlier; see `WaitingQueue`.
        self.num_overtaken_tokens = 0
        # Its place among the sequences of all requests, and whether places are kept from it for
        # first sequences of requests; see `WaitingQueue`.
        self.turn = 0
        self.is_further = False
        self.num_steps = 0
        self.num_batched_sequences = 0
        self.arrival_time = time.monotonic()
        self.scheduled_time: float | None = None
        self.first_token_time: float | None = None
        self.prefill: list[PrefillChunk] = []
        self.finish: Finish | None = None

    @property
    def is_seeded(self) -> bool:
        """Whether the client chose the seed."""
        return self.params.seed is not None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id!r}, {self.status}, {self.num_prompt_tokens}+"
            f"{self.num_completion_tokens} tokens, {self.num_computed_tokens} computed)"
        )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose KV is still to be computed: 1 while decoding, more while prefilling."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def awaits_prompt_logprobs(self) -> bool:
        """True while some requested log probabilities of prompt tokens are missing."""
        given = self.prompt_logprobs
        return given is not None and len(given) < self.num_prompt_tokens - 1

    def prompt_positions(self, num_tokens: int) -> range:
        """Prompt positions, among the next `num_tokens`, whose logits give missing logprobs.

        The logits of a position give the log probability of the token after it. A preempted
        sequence computes some positions again; those are left out.
        """
        if not self.awaits_prompt_logprobs:
            return range(0)
        begin = max(self.num_computed_tokens, len(self.prompt_logprobs or ()))
        end = self.num_computed_tokens + num_tokens
        return range(begin, min(end, self.num_prompt_tokens - 1))

    def append(self, token_id: int, now: float) -> FinishReason | None:
        """Append a sampled token; returns the reason if the sequence ends with it."""
        self.token_ids.append(token_id)
        if self.first_token_time is None:
            self.first_token_time = now
        if token_id in self.stop_token_ids:
            return FinishReason.STOP
        if self.num_completion_tokens >= self.max_tokens:
            return FinishReason.LENGTH
        return None

    def end(self, reason: FinishReason, now: float, error: EngineError | None = None) -> Finish:
        """Mark the sequence finished, once; its blocks must already be free."""
        assert self.finish is None, f"{self!r} finished twice"
        self.status = SequenceStatus.FINISHED
        self.finish = self.so_far(reason, now, error)
        return self.finish

    def so_far(self, reason: FinishReason, now: float, error: EngineError | None = None) -> Finish:
        """The finish that it would have now. Changes nothing; safe to call from any thread."""
        return Finish(
            reason=reason,
            num_prompt_tokens=self.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens,
            num_cached_tokens=self.num_cached_tokens,
            timings=Timings(
                arrival=self.arrival_time,
                scheduled=self.scheduled_time,
                first_token=self.first_token_time,
                finish=now,
                prefill=tuple(self.prefill),
            ),
            num_preemptions=self.num_preemptions,
            num_steps=self.num_steps,
            num_drafted_tokens=self.speculation.num_drafted,
            num_accepted_tokens=self.speculation.num_accepted,
            mean_batch_size=self.num_batched_sequences / max(self.num_steps, 1),
            error=error,
        )

    def refuse(self, error: EngineError) -> Finish:
        """End a sequence that was never added to a scheduler."""
        return self.end(FinishReason.ABORT, time.monotonic(), error)
