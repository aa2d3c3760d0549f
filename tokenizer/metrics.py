"""Prometheus metrics of the tokenizer service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

NUM_REQUESTS_RUNNING = Gauge(
    "tokenizer_num_requests_running", "Calls that run in a worker thread or wait for one."
)
ENCODE_SECONDS = Histogram(
    "tokenizer_encode_seconds",
    "Time to render and encode one input, including the wait for a worker thread.",
    ["input"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
TOKENS = Counter("tokenizer_tokens_total", "Tokens encoded or decoded.", ["operation"])


def export_pending(num_pending: Callable[[], int]) -> None:
    """Exports `num_pending()`, read at each scrape, as `tokenizer_num_requests_running`."""
    NUM_REQUESTS_RUNNING.set_function(num_pending)
