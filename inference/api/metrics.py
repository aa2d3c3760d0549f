"""Prometheus metrics of the engine, under the names that vLLM has given them.

Autoscalers, dashboards and the Gateway API Inference Extension read those names; what they mean
is in vLLM's documentation and in docs/metrics.md. What vLLM has no name for begins with
`inference_`. A process serves one engine, whose model is in every label (`watch`).
"""

from __future__ import annotations

import time
from typing import NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from inference.engine.interface import EngineClient, Finish, SequenceOutput
from mesh.observability.metrics import exemplar, labelled

_LABELS = ("model_name", "engine")
_ENGINE = "0"
"""vLLM numbers the engines of a process; here there is one."""

_FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1),
    *(2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
# vLLM's own begin at 10 ms; small models are faster.
_TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_REQUEST_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5),
    *(5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

NUM_REQUESTS_RUNNING = Gauge(
    "vllm:num_requests_running", "Sequences in the running batch.", _LABELS
)
NUM_REQUESTS_WAITING = Gauge(
    "vllm:num_requests_waiting", "Sequences that wait for a place in the batch.", _LABELS
)
KV_CACHE_USAGE = Gauge(
    "vllm:kv_cache_usage_perc",
    "Share of KV cache blocks that live sequences hold, 0 to 1.",
    _LABELS,
)
CACHE_CONFIG = Gauge(
    "vllm:cache_config_info",
    "Always 1; its labels tell the size of the KV cache. The blocks need not be on a GPU.",
    [*_LABELS, "block_size", "num_gpu_blocks", "enable_prefix_caching"],
)
# The same three under names without a colon, which the custom metrics API of Kubernetes, and so
# an autoscaler, can ask for.
OWN_NUM_REQUESTS_RUNNING = Gauge(
    "inference_num_requests_running", "As vllm:num_requests_running, for autoscalers."
)
OWN_NUM_REQUESTS_WAITING = Gauge(
    "inference_num_requests_waiting", "As vllm:num_requests_waiting, for autoscalers."
)
OWN_KV_CACHE_USAGE = Gauge(
    "inference_kv_cache_usage", "As vllm:kv_cache_usage_perc, for autoscalers."
)

REQUESTS = Counter(
    "vllm:request_success",
    "Sequences that ended, by how: stop, length, abort, error.",
    [*_LABELS, "finished_reason"],
)
PREEMPTIONS = Counter(
    "vllm:num_preemptions", "Times a sequence lost its blocks to an older one.", _LABELS
)
PROMPT_TOKENS = Counter("vllm:prompt_tokens", "Prompt tokens of sequences that ended.", _LABELS)
GENERATION_TOKENS = Counter("vllm:generation_tokens", "Tokens generated.", _LABELS)
DRAFT_TOKENS = Counter(
    "vllm:spec_decode_num_draft_tokens",
    "Tokens that prompt lookup guessed and a step verified.",
    _LABELS,
)
ACCEPTED_TOKENS = Counter(
    "vllm:spec_decode_num_accepted_tokens",
    "Guessed tokens that were what would have been sampled.",
    _LABELS,
)
PREFIX_CACHE_QUERIES = Counter(
    "vllm:prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache.", _LABELS
)
PREFIX_CACHE_HITS = Counter(
    "vllm:prefix_cache_hits", "Prompt tokens that the prefix cache spared.", _LABELS
)

TIME_TO_FIRST_TOKEN = Histogram(
    "vllm:time_to_first_token_seconds",
    "From arrival in the engine to the first token.",
    _LABELS,
    buckets=_FIRST_TOKEN_SECONDS,
)
INTER_TOKEN_LATENCY = Histogram(
    "vllm:inter_token_latency_seconds",
    "From one token of a sequence to its next, as the engine makes them.",
    _LABELS,
    buckets=_TOKEN_SECONDS,
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "vllm:request_time_per_output_token_seconds",
    "A sequence's mean time per token after its first one.",
    _LABELS,
    buckets=_TOKEN_SECONDS,
)
E2E_LATENCY = Histogram(
    "vllm:e2e_request_latency_seconds",
    "From arrival in the engine to the end.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
QUEUE_TIME = Histogram(
    "vllm:request_queue_time_seconds",
    "From arrival in the engine to the first step.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
PREFILL_TIME = Histogram(
    "vllm:request_prefill_time_seconds",
    "From the first step to the first token.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
DECODE_TIME = Histogram(
    "vllm:request_decode_time_seconds",
    "From the first token to the last.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
REQUEST_PROMPT_TOKENS = Histogram(
    "vllm:request_prompt_tokens", "Prompt tokens of a sequence.", _LABELS, buckets=_TOKENS
)
REQUEST_GENERATION_TOKENS = Histogram(
    "vllm:request_generation_tokens", "Tokens generated for a sequence.", _LABELS, buckets=_TOKENS
)
ITERATION_TOKENS = Histogram(
    "vllm:iteration_tokens_total",
    "Tokens that a step computes, of prompts and of completions.",
    _LABELS,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
)
STEP_SECONDS = Histogram(
    "inference_step_seconds",
    "Time of a step's forward pass and sampling.",
    _LABELS,
    buckets=_TOKEN_SECONDS,
)
CANCEL_TO_SLOT_FREE = Histogram(
    "inference_cancel_to_slot_free_seconds",
    "From the moment a cancellation arrives here to the sequence's KV blocks being free.",
    _LABELS,
    buckets=(0.0001, 0.00025, 0.0005, *_TOKEN_SECONDS),
)


class Cancellation(NamedTuple):
    """The arrival of a cancellation."""

    time: float
    trace_id: dict[str, str] | None


class _Engine:
    """The engine of this process, as far as its labels go."""

    labels = ("", _ENGINE)


def watch(engine: EngineClient) -> None:
    """Makes the gauges read this engine's load at each scrape, and all labels name its model."""
    name = engine.model_info.name
    _Engine.labels = labels = (name, _ENGINE)
    for gauge in (NUM_REQUESTS_RUNNING.labels(*labels), OWN_NUM_REQUESTS_RUNNING):
        gauge.set_function(lambda: engine.load().num_running)
    for gauge in (NUM_REQUESTS_WAITING.labels(*labels), OWN_NUM_REQUESTS_WAITING):
        gauge.set_function(lambda: engine.load().num_waiting)
    for gauge in (KV_CACHE_USAGE.labels(*labels), OWN_KV_CACHE_USAGE):
        gauge.set_function(lambda: engine.load().kv_usage)
    load = engine.load()
    num_blocks = load.kv_capacity_tokens // load.block_size
    CACHE_CONFIG.labels(*labels, str(load.block_size), str(num_blocks), "true").set(1)
    # So that a rate is 0, and not nothing, before the first of its kind.
    for metric in (
        *(PREEMPTIONS, PREFIX_CACHE_HITS, PREFIX_CACHE_QUERIES),
        *(DRAFT_TOKENS, ACCEPTED_TOKENS, CANCEL_TO_SLOT_FREE),
    ):
        metric.labels(*labels)


def observe_step(num_tokens: int, seconds: float) -> None:
    """Counts a step that computed `num_tokens`."""
    labelled(ITERATION_TOKENS, *_Engine.labels).observe(num_tokens)
    labelled(STEP_SECONDS, *_Engine.labels).observe(seconds)


def observe_chunk(chunk: SequenceOutput) -> None:
    """Counts the tokens of a chunk and the times between them."""
    if chunk.token_ids:
        labelled(GENERATION_TOKENS, *_Engine.labels).inc(len(chunk.token_ids))
    if chunk.intervals:
        latency, trace_id = labelled(INTER_TOKEN_LATENCY, *_Engine.labels), exemplar()
        for interval in chunk.intervals:
            latency.observe(interval, trace_id)


def observe(finish: Finish, trace_id: dict[str, str] | None = None) -> None:
    """Counts a sequence that ended; `trace_id` stands in for the current span's."""
    labels, timings = _Engine.labels, finish.timings
    trace_id = trace_id or exemplar()
    labelled(REQUESTS, *labels, finish.reason.value).inc()
    labelled(PROMPT_TOKENS, *labels).inc(finish.num_prompt_tokens)
    for counter, number in (
        (PREEMPTIONS, finish.num_preemptions),
        (DRAFT_TOKENS, finish.num_drafted_tokens),
        (ACCEPTED_TOKENS, finish.num_accepted_tokens),
    ):
        if number:  # of most sequences none is
            labelled(counter, *labels).inc(number)
    labelled(REQUEST_PROMPT_TOKENS, *labels).observe(finish.num_prompt_tokens, trace_id)
    labelled(REQUEST_GENERATION_TOKENS, *labels).observe(finish.num_completion_tokens, trace_id)
    labelled(E2E_LATENCY, *labels).observe(timings.finish - timings.arrival, trace_id)
    if timings.scheduled is None:
        return
    labelled(PREFIX_CACHE_QUERIES, *labels).inc(finish.num_prompt_tokens)
    labelled(PREFIX_CACHE_HITS, *labels).inc(finish.num_cached_tokens)
    labelled(QUEUE_TIME, *labels).observe(timings.scheduled - timings.arrival, trace_id)
    if timings.first_token is None:
        return
    decode = timings.finish - timings.first_token
    labelled(TIME_TO_FIRST_TOKEN, *labels).observe(timings.first_token - timings.arrival, trace_id)
    labelled(PREFILL_TIME, *labels).observe(timings.first_token - timings.scheduled, trace_id)
    labelled(DECODE_TIME, *labels).observe(decode, trace_id)
    if finish.num_completion_tokens > 1:
        per_token = decode / (finish.num_completion_tokens - 1)
        labelled(TIME_PER_OUTPUT_TOKEN, *labels).observe(per_token, trace_id)


def cancellation() -> Cancellation:
    """Notes that a cancellation has arrived; call it in the context of the request."""
    return Cancellation(time.monotonic(), exemplar())


def observe_cancelled(finish: Finish, cancelled: Cancellation) -> None:
    """Counts a sequence whose consumer left; its blocks are free now. For any thread."""
    seconds = time.monotonic() - cancelled.time
    labelled(CANCEL_TO_SLOT_FREE, *_Engine.labels).observe(seconds, cancelled.trace_id)
    observe(finish, cancelled.trace_id)
