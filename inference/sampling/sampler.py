"""Samples the next token of every row of logits in one batch on the device.

A seeded row gets the same token whatever else is in the batch: no operation mixes rows, and a
sampler's random numbers depend on seed, position and token id alone.
"""

from __future__ import annotations

from collections import abc
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from inference.runner.staging import to_device
from inference.sampling.adjustments import adjust
from inference.sampling.logprobs import token_logprobs
from inference.scheduler.scheduler_output import Row
from inference.scheduler.step_result import SampledToken
from inference.structured_output.masks import Masks


class PendingTokenIds(Protocol):
    """Sampled token ids that the device may still be computing."""

    def tolist(self) -> list[int]:
        """One id per row; blocks until the device has computed them."""
        ...


class Sampler(Protocol):
    """Samples one token per row by temperature, `top_k`, `top_p`, `min_p` and seed."""

    def sample(
        self, logits: Tensor, rows: abc.Sequence[Row], masks: Masks | None
    ) -> PendingTokenIds:
        """One id for each row of `logits` [num_rows, vocab_size], float32; may change `logits`.

        `masks` holds the tokens that each constrained row allows. The id is -1 for a row that has
        no finite logit, or an allowed logit that is NaN or positive infinity.
        """
        ...


class SamplerOutput:
    """The tokens sampled in a step, with the log probabilities that were requested.

    The device may still be computing them.
    """

    def __init__(
        self,
        token_ids: PendingTokenIds,
        logprobs: Tensor,
        num_logprobs: abc.Mapping[int, int],
    ) -> None:
        """`num_logprobs` maps a row to the number of top tokens that its sequence requests.

        `logprobs` [len(num_logprobs), vocab_size] are the log probabilities of those rows.
        """
        self.token_ids = token_ids
        self._logprobs = logprobs
        self._num_logprobs = num_logprobs

    def result(self) -> list[SampledToken]:
        """One token per row; blocks until the device has computed them."""
        token_ids = self.token_ids.tolist()
        tokens = [SampledToken(token_id) for token_id in token_ids]
        chosen = [token_ids[row] for row in self._num_logprobs]
        logprobs = token_logprobs(self._logprobs, chosen, list(self._num_logprobs.values()))
        for row, each in zip(self._num_logprobs, logprobs, strict=True):
            tokens[row] = SampledToken(token_ids[row], each)
        return tokens


def sample_tokens(
    logits: Tensor, rows: abc.Sequence[Row], sampler: Sampler, masks: Masks | None = None
) -> SamplerOutput:
    """Samples one token for each row of `logits` [num_rows, vocab_size], float32, in place.

    A row after draft tokens is sampled as if all of its drafts were accepted. `masks` holds the
    tokens that each constrained row allows. A row without finite logits gets id -1.
    """
    num_logprobs = {
        number: row.sequence.params.num_logprobs
        for number, row in enumerate(rows)
        if row.sequence.params.num_logprobs is not None
    }
    # Log probabilities describe the model's own distribution, before any adjustment.
    raw = _logprobs(logits, list(num_logprobs))
    adjust(logits, rows)
    return SamplerOutput(sampler.sample(logits, rows, masks), raw, num_logprobs)


def _logprobs(logits: Tensor, rows: list[int]) -> Tensor:
    """Log probabilities of these rows, in a new tensor [len(rows), vocab_size]."""
    if not rows:
        return logits[:0]
    if len(rows) < len(logits):
        logits = logits[to_device(np.array(rows), logits.device)]
    return torch.log_softmax(logits, dim=-1)
