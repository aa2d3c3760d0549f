"""The plan of one step: the sequences that it runs, and what it computes of each."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.scheduler.sequence import Sequence

_NO_POSITIONS = range(0)


class ScheduledSequence(NamedTuple):
    """What a step computes of one sequence."""

    sequence: Sequence
    num_tokens: int
    """Tokens to compute, from `num_computed_tokens` on, draft tokens included; more than 0."""
    samples: bool
    """Whether the step computes the sequence's last token, and so samples the next one."""
    draft_token_ids: abc.Sequence[int] = ()
    """Speculative tokens that the step verifies."""
    prompt_positions: range = _NO_POSITIONS
    """Prompt positions whose logits give the requested log probability of the next prompt token."""


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """The sequences of one step: those with one token first, then chunks of prompts."""

    scheduled: list[ScheduledSequence]
    start: float = 0.0
    """When the step was scheduled, in `time.monotonic()` seconds."""
    previous_indices: abc.Sequence[int] | None = None
    """Set for an overlapped step, one that is launched before the previous step's tokens are known.

    For each sequence, the index of its token among those that the previous step samples.
    """

    @property
    def sequences(self) -> list[Sequence]:
        return [scheduled.sequence for scheduled in self.scheduled]

    @property
    def live(self) -> list[ScheduledSequence]:
        """The sequences that have not finished since the step was launched."""
        return [scheduled for scheduled in self.scheduled if scheduled.sequence.finish is None]

    @property
    def is_finished(self) -> bool:
        """Whether no sequence is live."""
        return all(scheduled.sequence.finish is not None for scheduled in self.scheduled)

    @property
    def sampling(self) -> list[ScheduledSequence]:
        """The sequences whose next token this step samples."""
        return [scheduled for scheduled in self.scheduled if scheduled.samples]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(scheduled.num_tokens for scheduled in self.scheduled)


class Row(NamedTuple):
    """A row of logits to sample from: the position after a sequence's tokens and `num_ahead` more.

    The additional tokens are drafts, or the token that the previous step is still sampling.
    """

    sequence: Sequence
    num_ahead: int = 0
    draft_token_ids: abc.Sequence[int] = ()

    @property
    def position(self) -> int:
        """Index of the sampled token in the completion, from 0."""
        return self.sequence.num_completion_tokens + self.num_ahead

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """All tokens before this position, drafts included."""
        ids = np.array(self.sequence.token_ids)  # a copy: a view would keep the array from growing
        if not self.num_ahead:
            return ids
        return np.concatenate([ids, self.draft_token_ids[: self.num_ahead]])


def rows_of(sampling: Iterable[ScheduledSequence]) -> list[Row]:
    """The rows that a step samples: one per sequence, and one more per draft token."""
    return [
        Row(scheduled.sequence, num_ahead, scheduled.draft_token_ids)
        for scheduled in sampling
        for num_ahead in range(1 + len(scheduled.draft_token_ids))
    ]
