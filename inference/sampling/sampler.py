"""Chooses the next token of each row, in one batch on the device.

A seeded row gets the same token whatever else is in the batch: nothing here mixes rows, and a
drawer's randomness is a function of seed, position and token id alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
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


class Drawn(Protocol):
    """What was drawn, or is being drawn."""

    def tolist(self) -> list[int]:
        """An id for each row; may have to wait for them."""
        ...


class Drawer(Protocol):
    """Draws a token of each row by temperature, `top_k`, `top_p`, `min_p` and seed."""

    def draw(self, logits: Tensor, rows: Rows[Row], masks: Masks | None) -> Drawn:
        """An id for each row of `logits` [num_rows, vocab_size], float32; may change `logits`.

        `masks` say what the constrained rows may draw. -1 where no logit is finite, or one is no
        number.
        """
        ...


class Sampling:
    """A token for each row of a step, and what was asked of it; may be on its way yet."""

    def __init__(self, drawn: Drawn, logprobs: Tensor, asked: Mapping[int, int]) -> None:
        """`logprobs` [len(asked), vocab_size] are of the rows that `asked` for so many each."""
        self.drawn = drawn
        self._logprobs = logprobs
        self._asked = asked

    def result(self) -> list[SampledToken]:
        """The tokens; waits for them."""
        token_ids = self.drawn.tolist()
        tokens = [SampledToken(token_id) for token_id in token_ids]
        chosen = [token_ids[number] for number in self._asked]
        logprobs = token_logprobs(self._logprobs, chosen, list(self._asked.values()))
        for number, each in zip(self._asked, logprobs, strict=True):
            tokens[number] = SampledToken(token_ids[number], each)
        return tokens


def sample(logits: Tensor, rows: Rows[Row], drawer: Drawer, masks: Masks | None = None) -> Sampling:
    """One token for each row of `logits` [num_rows, vocab_size], float32; changes `logits`.

    Each is sampled as if the drafts before it stood. `masks` say what the constrained rows may
    draw. A row without finite logits gets id -1.
    """
    asked = {
        number: row.sequence.params.num_logprobs
        for number, row in enumerate(rows)
        if row.sequence.params.num_logprobs is not None
    }
    # Log probabilities are of the model's own distribution, before anything is changed.
    raw = _logprobs(logits, list(asked))
    adjust(logits, rows)
    return Sampling(drawer.draw(logits, rows, masks), raw, asked)


def _logprobs(logits: Tensor, rows: list[int]) -> Tensor:
    """Of these rows only; a new tensor."""
    if not rows:
        return logits[:0]
    if len(rows) < len(logits):
        logits = logits[to_device(np.array(rows), logits.device)]
    return torch.log_softmax(logits, dim=-1)
