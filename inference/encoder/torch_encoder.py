"""The forward pass of an encoder by torch, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.encoder.batch import Batch
from inference.encoder.config import EncoderConfig
from inference.encoder.layers import Embeddings, Layer, Norm, Reader

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class TorchEncoder:
    """Implements `Encoder`. The tokens of all texts are one flat batch, without padding."""

    def __init__(self, config: EncoderConfig, reader: Reader, device: torch.device) -> None:
        """Reads the weights. Raises ModelLoadError."""
        self.config = config
        self.device = device
        self._embeddings = Embeddings(reader)
        self._layers = [Layer(reader, number) for number in range(config.num_layers)]
        self._activation = _ACTIVATIONS[config.activation]

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [num_tokens, hidden_size]."""
        ids, positions, types = (
            torch.tensor(each, device=self.device)
            for each in (batch.token_ids, batch.positions, batch.types)
        )
        embeddings = self._embeddings
        x = self._norm(embeddings.sums(ids, positions, types), embeddings.norm)
        groups = list(_equal_lengths(batch))
        for layer in self._layers:
            attended = layer.attention_output(self._attend(layer.qkv(x), groups))
            x = self._norm(x + attended, layer.attention_norm)
            inner = self._activation(layer.inner(x))
            x = self._norm(x + layer.outer(inner), layer.output_norm)
        return x

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        size = (self.config.hidden_size,)
        return F.layer_norm(x, size, norm.weight, norm.bias, self.config.layer_norm_eps)

    def _attend(self, qkv: Tensor, groups: list[_Group]) -> Tensor:
        """[num_tokens, hidden_size] of q, k and v [num_tokens, 3 * hidden_size]."""
        heads, size = self.config.num_heads, self.config.head_dim
        mixed = torch.empty_like(qkv[:, : heads * size])
        for begin, end, length in groups:
            # [3, num_texts, num_heads, length, head_dim]
            parts = qkv[begin:end].view(-1, length, 3, heads, size).permute(2, 0, 3, 1, 4)
            query, key, value = parts.unbind(0)
            out = F.scaled_dot_product_attention(query, key, value)
            mixed[begin:end] = out.transpose(1, 2).reshape(end - begin, heads * size)
        return mixed


class _Group(NamedTuple):
    """Neighbouring texts of equal length: their first token, the end, and the length."""

    begin: int
    end: int
    length: int


def _equal_lengths(batch: Batch) -> Iterator[_Group]:
    begins = batch.begins
    first = 0
    for number in range(1, len(begins)):
        length = begins[first + 1] - begins[first]
        is_last = number == len(begins) - 1
        if is_last or begins[number + 1] - begins[number] != length:
            yield _Group(begins[first], begins[number], length)
            first = number
