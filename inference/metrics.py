"""Prometheus metrics of the engine; meanings as in vLLM's metrics design."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from inference.interface import EngineClient, Finish

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

NUM_REQUESTS_RUNNING = Gauge("inference_num_requests_running", "Sequences in the running batch.")
NUM_REQUESTS_WAITING = Gauge("inference_num_requests_waiting", "Sequences that wait for a place.")
KV_CACHE_USAGE = Gauge(
    "inference_kv_cache_usage", "Share of KV cache blocks that live sequences hold, 0 to 1."
)
PREEMPTIONS = Counter(
    "inference_preemptions_total", "Times a sequence lost its blocks to another one."
)
REQUESTS = Counter("inference_requests_total", "Sequences that ended, by how.", ["outcome"])
PROMPT_TOKENS = Counter("inference_prompt_tokens_total", "Prompt tokens of ended sequences.")
CACHED_TOKENS = Counter(
    "inference_cached_tokens_total", "Prompt tokens that the prefix cache spared."
)
GENERATION_TOKENS = Counter("inference_generation_tokens_total", "Tokens generated.")
QUEUE_TIME = Histogram(
    "inference_request_queue_time_seconds",
    "From arrival in the engine to the first step.",
    buckets=_SECONDS,
)
TIME_TO_FIRST_TOKEN = Histogram(
    "inference_time_to_first_token_seconds",
    "From arrival in the engine to the first token.",
    buckets=_SECONDS,
)
E2E_LATENCY = Histogram(
    "inference_e2e_request_latency_seconds",
    "From arrival in the engine to the end.",
    buckets=_SECONDS,
)


def watch(engine: EngineClient) -> None:
    """Makes the gauges read the engine's load at each scrape."""
    NUM_REQUESTS_RUNNING.set_function(lambda: engine.load().num_running)
    NUM_REQUESTS_WAITING.set_function(lambda: engine.load().num_waiting)
    KV_CACHE_USAGE.set_function(lambda: engine.load().kv_usage)


def observe(finish: Finish) -> None:
    """Counts a sequence that ended."""
    timings = finish.timings
    REQUESTS.labels(finish.reason.value).inc()
    PROMPT_TOKENS.inc(finish.num_prompt_tokens)
    CACHED_TOKENS.inc(finish.num_cached_tokens)
    GENERATION_TOKENS.inc(finish.num_completion_tokens)
    PREEMPTIONS.inc(finish.num_preemptions)
    E2E_LATENCY.observe(timings.finish - timings.arrival)
    if timings.scheduled is not None:
        QUEUE_TIME.observe(timings.scheduled - timings.arrival)
    if timings.first_token is not None:
        TIME_TO_FIRST_TOKEN.observe(timings.first_token - timings.arrival)
