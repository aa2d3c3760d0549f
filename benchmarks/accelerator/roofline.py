"""Roofline model: the minimum time of a step for a given bandwidth and matrix rate.

The time is the larger of two bounds. Ignored costs (activations, logits, the scales of quantized
weights, the arithmetic of attention in decode) only add to the time, so that no implementation is
faster than the roofline.
"""

from __future__ import annotations

from typing import NamedTuple

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.factory import activation_type

BYTES_OF_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}
"""Bytes of a matrix weight, by dtype; norms and embeddings have the activations' type."""


def activation_bytes(dtype: str) -> int:
    """Bytes of an element of the KV cache, the norms and the embeddings."""
    return activation_type(dtype).itemsize


class Rates(NamedTuple):
    """Measured rates of the device."""

    bytes_per_second: float
    flops_per_second: float


class Bound(NamedTuple):
    """Lower bounds of a step's duration."""

    bandwidth_seconds: float
    matrix_seconds: float

    @property
    def seconds(self) -> float:
        """The larger bound: transfers and products overlap at best."""
        return max(self)


def head_weights(config: ModelConfig) -> int:
    """Number of weights of the output matrix, tied or not."""
    return config.vocab_size * config.hidden_size


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes that every step reads: all matrices, including the output's, and the norms.

    Without the embedding table, of which a step reads only its tokens' rows.
    """
    matrices = (config.num_layer_weights + head_weights(config)) * BYTES_OF_WEIGHT[dtype]
    norms = (2 * config.num_layers + 1) * config.hidden_size * activation_bytes(dtype)
    return matrices + norms


def kv_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of one token's keys and values, over all layers."""
    return KVCache.bytes_per_token(config, activation_type(dtype))


def embedding_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of one row of the embedding table."""
    return config.hidden_size * activation_bytes(dtype)


def decode_bound(
    config: ModelConfig, dtype: str, rates: Rates, streams: int, context: float
) -> Bound:
    """A decode step of `streams` sequences with `context` tokens each.

    Bytes: weights + streams * (context * kv + embedding); the keys and values
    of the new token are written, those of the other tokens of `context` are read.
    FLOPs: 2 * (weights of layers and output) * streams.
    """
    moved = weight_bytes(config, dtype) + streams * (
        context * kv_bytes(config, dtype) + embedding_bytes(config, dtype)
    )
    flops = 2 * (config.num_layer_weights + head_weights(config)) * streams
    return Bound(moved / rates.bytes_per_second, flops / rates.flops_per_second)


def prefill_bound(config: ModelConfig, dtype: str, rates: Rates, tokens: int) -> Bound:
    """A step that computes a prompt of `tokens` tokens and the first new token.

    Bytes: weights + tokens * (kv + embedding), keys and values written.
    FLOPs: 2 * (weights of layers) * tokens, the output once: 2 * (weights of output), and causal
    attention: scores and their sum over values cost 4 * heads * head_dim for each of the
    tokens * (tokens + 1) / 2 pairs, in each layer.
    """
    moved = weight_bytes(config, dtype) + tokens * (
        kv_bytes(config, dtype) + embedding_bytes(config, dtype)
    )
    pairs = tokens * (tokens + 1) // 2
    attention = config.num_layers * 4 * config.num_heads * config.head_dim * pairs
    flops = 2 * config.num_layer_weights * tokens + 2 * head_weights(config) + attention
    return Bound(moved / rates.bytes_per_second, flops / rates.flops_per_second)


def mean_context(prompt_length: int, output_length: int) -> float:
    """Mean number of tokens that a decode step attends to, including the new one.

    The first token comes from the prefill. The step for token k, from 2 to the last, attends to
    prompt + k - 1 tokens; on average over these steps that is prompt + output / 2. A step's time
    grows linearly with the context, so its mean is the time at this mean.
    """
    return prompt_length + output_length / 2
