"""A loaded encoder: texts to vectors, or pairs to scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from inference.encoder.batch import Batch, EncoderInput, make_batch
from inference.encoder.config import EncoderConfig, Pooling
from inference.encoder.layers import Head


class Encoder(Protocol):
    """The layers of an encoder, on some device."""

    device: torch.device

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [num_tokens, hidden_size]."""
        ...


class EncoderModel:
    """Computes batches. Blocks; for one thread."""

    def __init__(
        self, config: EncoderConfig, encoder: Encoder, head: Head | None, num_parameters: int
    ) -> None:
        """`head` is that of a cross-encoder."""
        self.config = config
        self.encoder = encoder
        self.num_parameters = num_parameters
        self._head = head

    @torch.inference_mode()
    def compute(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        """A row for each input: its vector [hidden_size], or its score [1]."""
        batch = make_batch(inputs)
        hidden = self.encoder.hidden(batch)
        rows = self._vectors(hidden, batch) if self._head is None else self._scores(hidden, batch)
        found = rows.float().cpu().numpy()
        in_order = np.empty_like(found)
        in_order[batch.order] = found
        return in_order

    def _vectors(self, hidden: Tensor, batch: Batch) -> Tensor:
        pooled = _pool(hidden, batch, self.config.pooling)
        return F.normalize(pooled, dim=-1, eps=1e-12) if self.config.normalizes else pooled

    def _scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        assert self._head is not None
        scores = self._head(hidden[batch.begins[:-1]])
        return (torch.sigmoid(scores) if self.config.has_sigmoid else scores)[:, None]


def _pool(hidden: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    """[num_texts, hidden_size] in float32."""
    if pooling is Pooling.CLS:
        return hidden[batch.begins[:-1]].float()
    lengths = torch.tensor(batch.begins, device=hidden.device).diff()
    kind = "mean" if pooling is Pooling.MEAN else "max"
    return torch.segment_reduce(hidden.float(), kind, lengths=lengths)
