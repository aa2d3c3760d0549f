"""Prometheus metrics of the orchestrator."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from mesh.errors import ErrorKind

REFUSED_AT_ADMISSION = "refused"
"""Outcome of a request that exceeded the limit of concurrent requests."""

OK = "ok"
CANCELLED = "cancelled"

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

NUM_REQUESTS_RUNNING = Gauge("orchestrator_num_requests_running", "Requests in progress.")
REQUESTS = Counter(
    "orchestrator_requests_total",
    "Requests that ended, by method and outcome.",
    ["method", "outcome"],
)
NUM_REQUESTS_LIMIT = Gauge(
    "orchestrator_num_requests_limit", "Maximum number of concurrent requests."
)
REFUSED = Counter(
    "orchestrator_refused_total",
    "Requests refused before their first text, by reason: limit (concurrent requests), overloaded "
    "(token limit, or tokenizer or engines full), no_engine (no engine is ready).",
    ["method", "reason"],
)
MODEL_REQUESTS = Counter(
    "orchestrator_model_requests_total",
    "Requests that arrived for a model, with or without a ready engine; starts engines that are "
    "scaled to zero.",
    ["model"],
)
NUM_MODEL_REQUESTS = Gauge(
    "orchestrator_num_model_requests",
    "Requests for a model in progress, those that wait for its first engine included.",
    ["model"],
)
NUM_REQUESTS_HELD = Gauge(
    "orchestrator_num_requests_held", "Requests that wait for a model without a ready engine."
)
FAILOVERS = Counter(
    "orchestrator_failovers_total", "Failovers: a stream continued on another replica."
)
FIRST_TOKENS_OVERDUE = Counter(
    "orchestrator_first_tokens_overdue",
    "Requests without a first token although other engines gave theirs to later requests.",
)
REPLAYED_TOKENS = Counter(
    "orchestrator_replayed_tokens_total",
    "Generated tokens sent to another replica so that it continues a stream.",
)
PROMPT_TOKENS = Counter("orchestrator_prompt_tokens_total", "Prompt tokens.")
GENERATION_TOKENS = Counter("orchestrator_generation_tokens_total", "Generated tokens.")
TIME_TO_FIRST_TOKEN = Histogram(
    "orchestrator_time_to_first_token_seconds",
    "Time from the arrival of a request to its first text.",
    ["method"],
    buckets=_SECONDS,
)
E2E_LATENCY = Histogram(
    "orchestrator_e2e_request_latency_seconds",
    "Time from the arrival of a request to its end.",
    ["method"],
    buckets=_SECONDS,
)
RETRIEVAL = Histogram(
    "orchestrator_retrieval_seconds",
    "Duration of document retrieval, by provider and outcome: found, empty, timeout, failed.",
    ["provider", "outcome"],
    buckets=_SECONDS,
)
REPLICAS = Gauge("orchestrator_replicas_ready", "Engine replicas that are ready and take requests.")
REPLICAS_REFUSED = Gauge(
    "orchestrator_replicas_refused",
    "Ready engine replicas that get no requests, because their vocabulary differs from the "
    "tokenizer's, or their weights or settings from the other replicas' of the same name.",
)
TOKEN_USAGE = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of a request to a model, by type (input or output), including aborted requests.",
    ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_response_model", "gen_ai_token_type"],
    buckets=tuple(4**power for power in range(14)),
)

REFUSAL_REASONS = {
    REFUSED_AT_ADMISSION: "limit",
    ErrorKind.OVERLOADED.value: "overloaded",
    ErrorKind.UNAVAILABLE.value: "no_engine",
}
"""The label `reason` of `orchestrator_refused_total`, by outcome."""
