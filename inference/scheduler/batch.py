"""What a step takes and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from inference.engine.interface import Finish
from inference.scheduler.sequence import Sequence
from mesh.protocol.logprobs import TokenLogprob


class SampledToken(NamedTuple):
    """What a step sampled for one sequence; a negative id means that nothing could be."""

    token_id: int
    logprobs: TokenLogprob | None = None


class StepResult(NamedTuple):
    """What the runner made of a batch."""

    tokens: list[SampledToken]
    """One for each of `batch.sampling` and one more for each of its drafts, in order."""
    prompt_logprobs: Mapping[str, list[TokenLogprob]] = MappingProxyType({})
    """By request id, for each sequence with `prompt_rows`: one for each of them."""


class StepOutput(NamedTuple):
    """What one step means for one sequence's consumer."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish: Finish | None
    prompt_logprobs: Rows[TokenLogprob] = ()
    time: float | None = None
    """When the step ended, by the monotonic clock; None: now."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The sequences of one step, decodes first; each has `num_scheduled_tokens` > 0."""

    sequences: list[Sequence]
    start: float = 0.0
    rows_before: Rows[int] | None = None
    """Set where the step before is still being computed, whose tokens nobody knows yet: for each
    sequence the row of `sampling` there whose token it goes on with. Each has one row here."""

    @property
    def live(self) -> list[Sequence]:
        """Those that have not ended since the step was launched."""
        return [sequence for sequence in self.sequences if sequence.finish is None]

    @property
    def sampling(self) -> list[Sequence]:
        """Those whose next token this step samples, in order."""
        return [sequence for sequence in self.sequences if sequence.samples_this_step]


def accept(sequences: Rows[Sequence], sampled: list[SampledToken]) -> list[list[SampledToken]]:
    """For each sequence the tokens that stand, of the one behind it and those behind its drafts.

    A token stands where all drafts before it are what was sampled in their place. None does where
    nothing could be sampled.
    """
    tokens = iter(sampled)
    accepted: list[list[SampledToken]] = []
    for sequence in sequences:
        stands: list[SampledToken] = []
        rows = [next(tokens) for _ in range(1 + len(sequence.draft_token_ids))]
        for token, draft in zip(rows, [*sequence.draft_token_ids, None], strict=True):
            if token.token_id < 0:
                break
            stands.append(token)
            if token.token_id != draft:
                break
        accepted.append(stands)
    assert next(tokens, None) is None, "more tokens were sampled than rows wanted"
    return accepted
