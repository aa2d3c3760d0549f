"""Logits, sequences and plans for tests of sampling and of the runner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from inference.sampling.sampling_params import SamplingParams
from inference.scheduler import scheduler_output
from inference.scheduler.scheduler_output import Row, ScheduledSequence, SchedulerOutput
from inference.scheduler.sequence import Sequence

VOCAB_SIZE = 32


def make_logits(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> list[float]:
    """Random logits with a wide spread and no ties."""
    generator = torch.Generator().manual_seed(seed)
    return [float(x) for x in torch.randn(vocab_size, generator=generator) * 2]


def make_sequence(
    prompt: list[int] | None = None, completion: list[int] | None = None, **params: Any
) -> Sequence:
    """A sequence with a prompt and a part of its completion."""
    prompt, completion = prompt or [0], completion or []
    ids = [*prompt, *completion]
    return Sequence("s", ids, SamplingParams(**params), num_resumed_tokens=len(completion))


def rows_of(sequences: Iterable[Sequence], draft_token_ids: tuple[int, ...] = ()) -> list[Row]:
    """The rows of logits that a step samples for these sequences, each with the same drafts."""
    num_tokens = 1 + len(draft_token_ids)
    return scheduler_output.rows_of(
        ScheduledSequence(sequence, num_tokens, True, draft_token_ids) for sequence in sequences
    )


def plan_of(sequences: Iterable[Sequence], num_tokens: int | None = None) -> SchedulerOutput:
    """A plan that computes `num_tokens` of each sequence, by default all that are left."""
    scheduled = []
    for sequence in sequences:
        left = sequence.num_uncomputed_tokens
        count = left if num_tokens is None else num_tokens
        positions = sequence.prompt_positions(count)
        scheduled.append(ScheduledSequence(sequence, count, count == left, (), positions))
    return SchedulerOutput(scheduled)
