"""Prometheus metrics of the tokenizer."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

ENCODE_SECONDS = Histogram(
    "tokenizer_encode_seconds",
    "Time to render and encode one input, waiting for a thread included.",
    ["input"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
TOKENS = Counter("tokenizer_tokens_total", "Tokens that were encoded or decoded.", ["operation"])
