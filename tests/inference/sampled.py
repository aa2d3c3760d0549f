"""Logits and sequences to sample from."""

from __future__ import annotations

from typing import Any

import torch

from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence

VOCAB_SIZE = 32


def make_logits(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> list[float]:
    """Logits with a lively spread and no ties."""
    generator = torch.Generator().manual_seed(seed)
    return [float(x) for x in torch.randn(vocab_size, generator=generator) * 2]


def make_sequence(
    prompt: list[int] | None = None, completion: list[int] | None = None, **params: Any
) -> Sequence:
    """A sequence in the middle of its completion."""
    prompt, completion = prompt or [0], completion or []
    ids = [*prompt, *completion]
    return Sequence("s", ids, SamplingParams(**params), num_resumed_tokens=len(completion))
