"""Prometheus metrics of the engine, under vLLM's names where vLLM has the metric.

Autoscalers, dashboards and the Gateway API Inference Extension read those names. docs/metrics.md
and vLLM's documentation describe them. Other metrics begin with `inference_`. A process serves one
engine; call `watch` to put its model's name into the labels.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from inference.engine.interface import EngineClient, Finish, SequenceOutput
from mesh.observability.metrics import exemplar, labelled

_LABELS = ("model_name", "engine")
_ENGINE = "0"
"""vLLM numbers the engines of a process; Weir has one engine in a process."""

_FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1),
    *(2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
# vLLM's buckets begin at 10 ms; small models are faster.
_TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_REQUEST_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5),
    *(5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

NUM_REQUESTS_RUNNING = Gauge("vllm:num_requests_running", "Sequences that are running.", _LABELS)
NUM_REQUESTS_WAITING = Gauge(
    "vllm:num_requests_waiting", "Sequences in the waiting queue.", _LABELS
)
KV_CACHE_USAGE = Gauge(
    "vllm:kv_cache_usage_perc",
    "Share of KV-cache blocks that live sequences hold, 0 to 1.",
    _LABELS,
)
CACHE_CONFIG = Gauge(
    "vllm:cache_config_info",
    "Always 1; the labels give the size of the KV cache. Blocks may be in CPU memory.",
    [*_LABELS, "block_size", "num_gpu_blocks", "enable_prefix_caching"],
)
LORA_REQUESTS = Gauge(
    "vllm:lora_requests_info",
    "Unix time; the labels list the LoRA adapters of running and waiting sequences, and how many "
    "can be loaded. Endpoint pickers of the Gateway API Inference Extension read it.",
    [*_LABELS, "max_lora", "running_lora_adapters", "waiting_lora_adapters"],
)
# The three gauges again under names without a colon, because the custom metrics API of Kubernetes,
# which an autoscaler reads, does not allow one.
OWN_NUM_REQUESTS_RUNNING = Gauge(
    "inference_num_requests_running", "As vllm:num_requests_running, for autoscalers."
)
OWN_NUM_REQUESTS_WAITING = Gauge(
    "inference_num_requests_waiting", "As vllm:num_requests_waiting, for autoscalers."
)
NUM_TOKENS_WAITING = Gauge(
    "inference_num_tokens_waiting",
    "Tokens of the sequences in the waiting queue, for autoscalers.",
)
OWN_KV_CACHE_USAGE = Gauge(
    "inference_kv_cache_usage", "As vllm:kv_cache_usage_perc, for autoscalers."
)

REQUESTS = Counter(
    "vllm:request_success",
    "Finished sequences by finish reason: stop, length, abort, error.",
    [*_LABELS, "finished_reason"],
)
STUCK_STEPS = Counter(
    "inference_stuck_steps",
    "Steps that did not return within their limit (INFERENCE_STEP_TIMEOUT_SECONDS).",
)
PREEMPTIONS = Counter(
    "vllm:num_preemptions",
    "Preemptions: a sequence lost its KV-cache blocks to an older one.",
    _LABELS,
)
PROMPT_TOKENS = Counter("vllm:prompt_tokens", "Prompt tokens of finished sequences.", _LABELS)
GENERATION_TOKENS = Counter("vllm:generation_tokens", "Generated tokens.", _LABELS)
DRAFT_TOKENS = Counter(
    "vllm:spec_decode_num_draft_tokens",
    "Speculative (draft) tokens that prompt lookup proposed and a step verified.",
    _LABELS,
)
ACCEPTED_TOKENS = Counter(
    "vllm:spec_decode_num_accepted_tokens",
    "Speculative (draft) tokens that were accepted.",
    _LABELS,
)
EMBEDDING_TOKENS = Counter(
    "inference_embedding_tokens", "Tokens of inputs to embed that were computed.", _LABELS
)
PREFIX_CACHE_QUERIES = Counter(
    "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", _LABELS
)
PREFIX_CACHE_HITS = Counter(
    "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", _LABELS
)

TIME_TO_FIRST_TOKEN = Histogram(
    "vllm:time_to_first_token_seconds",
    "Time from arrival in the engine to the first token, in seconds.",
    _LABELS,
    buckets=_FIRST_TOKEN_SECONDS,
)
INTER_TOKEN_LATENCY = Histogram(
    "vllm:inter_token_latency_seconds",
    "Time between two tokens of a sequence, measured in the engine, in seconds.",
    _LABELS,
    buckets=_TOKEN_SECONDS,
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "vllm:request_time_per_output_token_seconds",
    "Mean time per token of a sequence after its first token, in seconds.",
    _LABELS,
    buckets=_TOKEN_SECONDS,
)
E2E_LATENCY = Histogram(
    "vllm:e2e_request_latency_seconds",
    "Time from arrival in the engine to the finish, in seconds.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
QUEUE_TIME = Histogram(
    "vllm:request_queue_time_seconds",
    "Time from arrival in the engine to the first step, in seconds.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
PREFILL_TIME = Histogram(
    "vllm:request_prefill_time_seconds",
    "Time from the first step to the first token, in seconds.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
DECODE_TIME = Histogram(
    "vllm:request_decode_time_seconds",
    "Time from the first token to the last, in seconds.",
    _LABELS,
    buckets=_REQUEST_SECONDS,
)
REQUEST_PROMPT_TOKENS = Histogram(
    "vllm:request_prompt_tokens", "Prompt tokens per sequence.", _LABELS, buckets=_TOKENS
)
REQUEST_GENERATION_TOKENS = Histogram(
    "vllm:request_generation_tokens", "Generated tokens per sequence.", _LABELS, buckets=_TOKENS
)
ITERATION_TOKENS = Histogram(
    "vllm:iteration_tokens_total",
    "Tokens per step, of prompts and completions.",
    _LABELS,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
)
STEP_SECONDS = Histogram(
    "inference_step_seconds",
    "Time of a step: forward pass and sampling, in seconds.",
    _LABELS,
    buckets=_TOKEN_SECONDS,
)
CANCEL_TO_SLOT_FREE = Histogram(
    "inference_cancel_to_slot_free_seconds",
    "Time from the arrival of a cancellation until the sequence's KV blocks are free, in seconds.",
    _LABELS,
    buckets=(0.0001, 0.00025, 0.0005, *_TOKEN_SECONDS),
)


class Cancellation(NamedTuple):
    """When a cancellation arrived, and the request's trace."""

    time: float
    """In `time.monotonic()` seconds."""
    trace_id: dict[str, str] | None
    num_taken: int
    """Completion tokens that were counted, or that another replica had generated."""


class _Engine:
    """The label values of this process's engine."""

    labels = ("", _ENGINE)


def watch(engine: EngineClient) -> None:
    """Make the gauges read this engine's load at each scrape, and label metrics with its model."""
    name = engine.model_info.name
    _Engine.labels = labels = (name, _ENGINE)
    for gauge in (NUM_REQUESTS_RUNNING.labels(*labels), OWN_NUM_REQUESTS_RUNNING):
        gauge.set_function(lambda: _num_running(engine))
    for gauge in (NUM_REQUESTS_WAITING.labels(*labels), OWN_NUM_REQUESTS_WAITING):
        gauge.set_function(lambda: engine.load().num_waiting)
    NUM_TOKENS_WAITING.set_function(lambda: engine.load().num_waiting_tokens)
    for gauge in (KV_CACHE_USAGE.labels(*labels), OWN_KV_CACHE_USAGE):
        gauge.set_function(lambda: engine.load().kv_usage)
    load = engine.load()
    num_blocks = load.kv_capacity_tokens // load.block_size
    CACHE_CONFIG.labels(*labels, str(load.block_size), str(num_blocks), "true").set(1)
    # Exported as 0 from the start, so that rates are defined before the first event.
    for metric in (
        *(PREEMPTIONS, PREFIX_CACHE_HITS, PREFIX_CACHE_QUERIES),
        *(DRAFT_TOKENS, ACCEPTED_TOKENS, EMBEDDING_TOKENS, CANCEL_TO_SLOT_FREE),
    ):
        metric.labels(*labels)


def observe_step(num_tokens: int, seconds: float, trace_id: dict[str, str] | None = None) -> None:
    """Record a step that computed `num_tokens`; `trace_id` is that of a request in it."""
    labelled(ITERATION_TOKENS, *_Engine.labels).observe(num_tokens, trace_id)
    labelled(STEP_SECONDS, *_Engine.labels).observe(seconds, trace_id)


def _num_running(engine: EngineClient) -> int:
    """The running sequences; at each scrape, before `LORA_REQUESTS` is read, also sets that."""
    load = engine.load()
    used = (",".join(names) for names in (load.running_adapters, load.waiting_adapters))
    LORA_REQUESTS.clear()
    LORA_REQUESTS.labels(*_Engine.labels, str(engine.max_adapters), *used).set(time.time())
    return load.num_running


def observe_embeddings(num_tokens: int) -> None:
    """Record a piece of the inputs to embed."""
    labelled(EMBEDDING_TOKENS, *_Engine.labels).inc(num_tokens)


def observe_output(output: SequenceOutput) -> None:
    """Record the number of tokens in an output and the times between them."""
    if output.token_ids:
        labelled(GENERATION_TOKENS, *_Engine.labels).inc(len(output.token_ids))
    if output.intervals:
        latency, trace_id = labelled(INTER_TOKEN_LATENCY, *_Engine.labels), exemplar()
        for interval in output.intervals:
            latency.observe(interval, trace_id)


def observe_finish(finish: Finish, trace_id: dict[str, str] | None = None) -> None:
    """Record a finished sequence; `trace_id` replaces the current span's as the exemplar."""
    labels, timings = _Engine.labels, finish.timings
    trace_id = trace_id or exemplar()
    labelled(REQUESTS, *labels, finish.reason.value).inc()
    labelled(PROMPT_TOKENS, *labels).inc(finish.num_prompt_tokens)
    for counter, number in (
        (PREEMPTIONS, finish.num_preemptions),
        (DRAFT_TOKENS, finish.num_drafted_tokens),
        (ACCEPTED_TOKENS, finish.num_accepted_tokens),
    ):
        if number:
            labelled(counter, *labels).inc(number)
    labelled(REQUEST_PROMPT_TOKENS, *labels).observe(finish.num_prompt_tokens, trace_id)
    labelled(REQUEST_GENERATION_TOKENS, *labels).observe(finish.num_completion_tokens, trace_id)
    labelled(E2E_LATENCY, *labels).observe(timings.e2e_seconds, trace_id)
    if timings.scheduled is None:
        return
    labelled(PREFIX_CACHE_QUERIES, *labels).inc(finish.num_prompt_tokens)
    labelled(PREFIX_CACHE_HITS, *labels).inc(finish.num_cached_tokens)
    labelled(QUEUE_TIME, *labels).observe(timings.queue_seconds, trace_id)
    ttft = timings.ttft_seconds
    if ttft is None:
        return
    labelled(TIME_TO_FIRST_TOKEN, *labels).observe(ttft, trace_id)
    labelled(PREFILL_TIME, *labels).observe(timings.prefill_seconds, trace_id)
    labelled(DECODE_TIME, *labels).observe(timings.decode_seconds, trace_id)
    if finish.num_completion_tokens > 1:
        per_token = timings.decode_seconds / (finish.num_completion_tokens - 1)
        labelled(TIME_PER_OUTPUT_TOKEN, *labels).observe(per_token, trace_id)


def cancellation(num_taken: int) -> Cancellation:
    """The arrival of a cancellation now; call in the context of the request."""
    return Cancellation(time.monotonic(), exemplar(), num_taken)


def observe_cancelled(finish: Finish, cancelled: Cancellation) -> None:
    """Record a cancelled sequence whose blocks are free now. Safe to call from any thread."""
    seconds = time.monotonic() - cancelled.time
    labelled(CANCEL_TO_SLOT_FREE, *_Engine.labels).observe(seconds, cancelled.trace_id)
    observe_unread(finish, cancelled)


def observe_unread(finish: Finish, cancelled: Cancellation) -> None:
    """Record a finished sequence whose consumer left before the last output.

    Safe to call from any thread.
    """
    # Generated while the cancellation was on its way.
    num_untaken = max(0, finish.num_completion_tokens - cancelled.num_taken)
    labelled(GENERATION_TOKENS, *_Engine.labels).inc(num_untaken)
    observe_finish(finish, cancelled.trace_id)
