"""The result of a step, from the runner and for each sequence's consumer."""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from inference.engine.interface import Finish
from mesh.protocol.logprobs import TokenLogprob


class SampledToken(NamedTuple):
    """A token that a step sampled; a negative id means that the logits were not finite."""

    token_id: int
    logprobs: TokenLogprob | None = None


class StepResult(NamedTuple):
    """What the runner returns for a step."""

    tokens: list[SampledToken]
    """For each sequence that samples, one token, and one more per draft token; in order."""
    prompt_logprobs: Mapping[str, list[TokenLogprob]] = MappingProxyType({})
    """By request id: log probabilities for the `prompt_positions` of the sequence."""


class StepOutput(NamedTuple):
    """What one step produced for one sequence."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish: Finish | None
    prompt_logprobs: abc.Sequence[TokenLogprob] = ()
    time: float | None = None
    """When the step ended, in `time.monotonic()` seconds; None: now."""
