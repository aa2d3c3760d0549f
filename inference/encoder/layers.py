"""The weights of an encoder, read by the names of its family."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.encoder.config import EncoderConfig
from inference.model.layers.grouped import quantise_groups
from inference.model.layers.linear import GroupedLinear, Linear
from inference.model.weights.weights import Weights


class Norm:
    """Layer normalisation: weight and bias, each [hidden_size]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias


class Layer:
    """One layer: attention, then a feed-forward, each followed by a norm of the sum."""

    def __init__(self, reader: Reader, number: int) -> None:
        config, family = reader.config, reader.config.family
        prefix = family.layer.format(number)
        hidden, inner = config.hidden_size, config.intermediate_size
        names = [prefix + name for name in (family.query, family.key, family.value)]
        self.qkv = reader.merged(names, hidden, hidden)
        self.attention_output = reader.linear(prefix + family.attention_output, hidden, hidden)
        self.attention_norm = reader.norm(prefix + family.attention_norm)
        self.inner = reader.linear(prefix + family.inner, inner, hidden)
        self.outer = reader.linear(prefix + family.outer, hidden, inner)
        self.output_norm = reader.norm(prefix + family.output_norm)


class Embeddings:
    """The tables of tokens, positions and types, and the norm of their sum."""

    def __init__(self, reader: Reader) -> None:
        config = reader.config
        hidden = config.hidden_size
        name = "embeddings.{}_embeddings.weight"
        self.words = reader.tensor(name.format("word"), config.vocab_size, hidden)
        table = reader.tensor(name.format("position"), config.num_positions, hidden)
        self.positions = table[config.first_position :]
        self.types: Tensor | None = None
        if config.num_token_types:
            table = reader.tensor(name.format("token_type"), config.num_token_types, hidden)
            # A family with one type has the same vector for both texts of a pair.
            self.types = table if len(table) > 1 else table.repeat(2, 1)
        self.norm = reader.norm("embeddings.LayerNorm")

    def sums(self, token_ids: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """[num_tokens, hidden_size], before the norm."""
        hidden = self.words[token_ids] + self.positions[positions]
        return hidden if self.types is None else hidden + self.types[types]


class Head:
    """The two matrices that make a score of the first token's hidden state."""

    def __init__(self, reader: Reader) -> None:
        family, hidden = reader.config.family, reader.config.hidden_size
        first, second = family.head
        self._is_relu = family.head_activation == "relu"
        self._first = reader.linear(first, hidden, hidden, has_prefix=family.head_has_prefix)
        self._second = reader.linear(second, 1, hidden, has_prefix=False)

    def __call__(self, first: Tensor) -> Tensor:
        """The scores [num_texts] of hidden states [num_texts, hidden_size]."""
        inner = self._first(first)
        inner = torch.relu(inner) if self._is_relu else torch.tanh(inner)
        return self._second(inner)[:, 0]


class Reader:
    """Reads the tensors of one checkpoint. All methods raise ModelLoadError."""

    def __init__(
        self,
        weights: Weights,
        config: EncoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_int8: bool = False,
    ) -> None:
        """`dtype` is the type of the tensors in memory; `is_int8`: but for the matrices."""
        self.config = config
        self.num_parameters = 0
        self._weights = weights
        self._dtype = dtype
        self._device = device
        self._is_int8 = is_int8
        prefix = config.family.prefix
        self._prefix = prefix if f"{prefix}embeddings.LayerNorm.weight" in weights else ""

    def tensor(self, name: str, *shape: int, has_prefix: bool = True) -> Tensor:
        """The tensor in the type and on the device of the model."""
        tensor = self._weights.take((self._prefix if has_prefix else "") + name, shape)
        self.num_parameters += tensor.numel()
        return tensor.to(self._device, self._dtype)

    def norm(self, name: str) -> Norm:
        size = self.config.hidden_size
        return Norm(self.tensor(f"{name}.weight", size), self.tensor(f"{name}.bias", size))

    def linear(
        self, name: str, num_outputs: int, num_inputs: int, *, has_prefix: bool = True
    ) -> Linear:
        weight = self.tensor(f"{name}.weight", num_outputs, num_inputs, has_prefix=has_prefix)
        bias = self.tensor(f"{name}.bias", num_outputs, has_prefix=has_prefix)
        return self._matrix(weight, bias)

    def merged(self, names: list[str], num_outputs: int, num_inputs: int) -> Linear:
        """Matrices with the same input as one: their outputs follow each other."""
        weights = [self.tensor(f"{name}.weight", num_outputs, num_inputs) for name in names]
        biases = [self.tensor(f"{name}.bias", num_outputs) for name in names]
        return self._matrix(torch.cat(weights), torch.cat(biases))

    def _matrix(self, weight: Tensor, bias: Tensor) -> Linear:
        if self._is_int8:
            return GroupedLinear(quantise_groups(weight, 8), bias)
        return Linear(weight, bias)

    def skip_unused(self) -> None:
        """Counts tensors as used that an encoder does not need: poolers, and saved buffers."""
        names = ["embeddings.position_ids", "embeddings.token_type_ids"]
        if not self.config.scores_pairs:
            names += ["pooler.dense.weight", "pooler.dense.bias"]
        for name in names:
            self._weights.skip(self._prefix + name)
