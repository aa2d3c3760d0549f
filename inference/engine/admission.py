"""Admission: refuses sequences that cannot run, or that exceed the queues, before any work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inference.engine.errors import ContextTooLong, InvalidPrompt, InvalidSamplingParams, Overloaded
from inference.scheduler.scheduler import RESERVED_SHARE
from inference.scheduler.sequence import Sequence
from mesh.errors import context_too_long_message


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The limits of one engine. Stateless: the caller counts the live sequences."""

    vocab_size: int
    max_context: int
    """Most tokens of prompt and completion together."""
    kv_capacity_tokens: int
    """Capacity of the whole KV cache in tokens."""
    max_num_seqs: int
    max_num_waiting: int

    def admit(self, sequence: Sequence, *, num_live: int, is_further: bool = False) -> None:
        """Check a new sequence while `num_live` others are live, and set its `max_tokens`.

        `is_further`: others of the same request are live; some places are for first ones only.
        Raises `InvalidPrompt`, `InvalidSamplingParams`, `ContextTooLong` or `Overloaded`.
        """
        self._check_token_ids(sequence)
        self._set_max_tokens(sequence)
        most = self.max_num_seqs + self.max_num_waiting
        if num_live >= (most - most // RESERVED_SHARE if is_further else most):
            raise Overloaded(
                f"at most {self.max_num_seqs} sequences may run and {self.max_num_waiting} wait. "
                f"Live: {num_live}"
            )

    def _check_token_ids(self, sequence: Sequence) -> None:
        if sequence.num_prompt_tokens < 1:
            raise InvalidPrompt("prompt must hold at least 1 token. Given: 0", field="prompt")
        wrong = self._outside_vocabulary((min(sequence.token_ids), max(sequence.token_ids)))
        if wrong is not None:
            raise InvalidPrompt(
                f"prompt token ids must be between 0 and {self.vocab_size - 1}. Given: {wrong}",
                field="prompt",
            )
        params = sequence.params
        for name, ids in (
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            wrong = self._outside_vocabulary(ids)
            if wrong is not None:
                raise InvalidSamplingParams(
                    f"{name} ids must be between 0 and {self.vocab_size - 1}. Given: {wrong}",
                    field=name,
                )

    def _outside_vocabulary(self, token_ids: Iterable[int]) -> int | None:
        return next((i for i in token_ids if not 0 <= i < self.vocab_size), None)

    def _set_max_tokens(self, sequence: Sequence) -> None:
        num_prompt_tokens = sequence.num_prompt_tokens
        # The last sampled token ends the sequence; its KV is never stored.
        room = min(self.max_context, self.kv_capacity_tokens + 1) - num_prompt_tokens
        num_tokens = num_prompt_tokens + max(sequence.num_completion_tokens + 1, 1)
        if sequence.params.max_tokens is not None:
            num_tokens = num_prompt_tokens + sequence.params.max_tokens
        if num_tokens > self.max_context:
            raise self._too_long(sequence, num_tokens)
        if num_tokens - 1 > self.kv_capacity_tokens:
            raise self._too_long(
                sequence, num_tokens, f", more than the KV cache's {self.kv_capacity_tokens}"
            )
        sequence.max_tokens = sequence.params.max_tokens or room
        if sequence.num_completion_tokens >= sequence.max_tokens:
            raise InvalidPrompt(
                f"num_resumed_tokens must be less than max_tokens ({sequence.max_tokens}). "
                f"Given: {sequence.num_completion_tokens}",
                field="num_resumed_tokens",
            )

    def _too_long(self, sequence: Sequence, num_tokens: int, beyond: str = "") -> ContextTooLong:
        num_prompt_tokens = sequence.num_prompt_tokens
        given = (
            f"you requested {num_tokens} tokens ({num_prompt_tokens} in the prompt, "
            f"{num_tokens - num_prompt_tokens} in the completion){beyond}."
        )
        fits = num_prompt_tokens < min(self.max_context, self.kv_capacity_tokens + 1)
        return ContextTooLong(
            context_too_long_message(self.max_context, given),
            field="max_tokens" if fits and sequence.params.max_tokens is not None else "prompt",
        )
