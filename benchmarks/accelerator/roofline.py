"""The least time that a device of a known bandwidth and matrix rate needs for a step.

Two bounds, of which the larger holds. What is left out (activations, logits, the scales of
quantised weights, attention's arithmetic while decoding) only adds to the time, so the roofline is
never lower than what the device could do.
"""

from __future__ import annotations

from typing import NamedTuple

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.factory import activation_type

BYTES_OF_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}
"""Of a weight in a matrix, by the engine's dtype; norms and embeddings are as the activations."""


def activation_bytes(dtype: str) -> int:
    """Of a number in the KV cache, in a norm's weights and in the table of embeddings."""
    return activation_type(dtype).itemsize


class Rates(NamedTuple):
    """What the device was measured to do."""

    bytes_per_second: float
    flops_per_second: float


class Bound(NamedTuple):
    """Seconds that a step takes at least."""

    bandwidth_seconds: float
    matrix_seconds: float

    @property
    def seconds(self) -> float:
        """Moving and multiplying overlap at best, so the longer of both."""
        return max(self)


def head_weights(config: ModelConfig) -> int:
    """Weights of the output matrix, tied to the embeddings or not."""
    return config.vocab_size * config.hidden_size


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes that every step reads: all matrices, the output's among them, and the norms.

    The table of embeddings is not among them: only the rows of the step's tokens are read.
    """
    matrices = (config.num_layer_weights + head_weights(config)) * BYTES_OF_WEIGHT[dtype]
    norms = (2 * config.num_layers + 1) * config.hidden_size * activation_bytes(dtype)
    return matrices + norms


def kv_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of one token's keys and values, over all layers."""
    return KVCache.bytes_per_token(config, activation_type(dtype))


def embedding_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of one token's row in the table of embeddings."""
    return config.hidden_size * activation_bytes(dtype)


def decode_bound(
    config: ModelConfig, dtype: str, rates: Rates, streams: int, context: float
) -> Bound:
    """A step that gives `streams` sequences, each of `context` tokens, one token more.

    Bytes: weights + streams * (context * kv + embedding); one of the `context` tokens is the new
    one, whose keys and values are written, the others' are read.
    FLOPs: 2 * (weights of layers and output) * streams.
    """
    moved = weight_bytes(config, dtype) + streams * (
        context * kv_bytes(config, dtype) + embedding_bytes(config, dtype)
    )
    flops = 2 * (config.num_layer_weights + head_weights(config)) * streams
    return Bound(moved / rates.bytes_per_second, flops / rates.flops_per_second)


def prefill_bound(config: ModelConfig, dtype: str, rates: Rates, tokens: int) -> Bound:
    """A step that computes a prompt of `tokens` and its next token.

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
    """Tokens that a stream attends to in an average step of its decode, the new one included.

    The first token comes from the prefill. The step for token k, from 2 to the last, attends to
    prompt + k - 1 tokens; on average over these steps that is prompt + output / 2. A step's time
    grows linearly with the context, so its mean is the time at this mean.
    """
    return prompt_length + output_length / 2
