"""Prometheus metrics of the orchestrator."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from mesh.errors import ErrorKind
from mesh.observability import semconv
from mesh.observability.metrics import exemplar, labelled
from orchestrator.admission.request_table import ActiveRequest

REFUSED_AT_ADMISSION = "refused"
"""The outcome of a request that there was no place for."""

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

NUM_REQUESTS_RUNNING = Gauge(
    "orchestrator_num_requests_running", "Requests that are being worked on."
)
REQUESTS = Counter(
    "orchestrator_requests_total", "Requests that ended, by how.", ["method", "outcome"]
)
NUM_REQUESTS_LIMIT = Gauge(
    "orchestrator_num_requests_limit", "Most requests that may be worked on at a time."
)
REFUSED = Counter(
    "orchestrator_refused_total",
    "Requests refused before their first text, by why: limit (of requests at a time), overloaded "
    "(tokenizer or engines have no room), no_engine (none is ready).",
    ["method", "reason"],
)
FAILOVERS = Counter(
    "orchestrator_failovers_total", "Streams that were continued on another replica."
)
REPLAYED_TOKENS = Counter(
    "orchestrator_replayed_tokens_total",
    "Generated tokens that were sent to another replica for it to go on from.",
)
PROMPT_TOKENS = Counter("orchestrator_prompt_tokens_total", "Tokens in prompts.")
GENERATION_TOKENS = Counter("orchestrator_generation_tokens_total", "Tokens generated.")
TIME_TO_FIRST_TOKEN = Histogram(
    "orchestrator_time_to_first_token_seconds",
    "From the arrival of a request to its first text.",
    ["method"],
    buckets=_SECONDS,
)
E2E_LATENCY = Histogram(
    "orchestrator_e2e_request_latency_seconds",
    "From the arrival of a request to its end.",
    ["method"],
    buckets=_SECONDS,
)
RETRIEVAL = Histogram(
    "orchestrator_retrieval_seconds",
    "Time to find documents, by provider and outcome: found, empty, timeout, failed.",
    ["provider", "outcome"],
    buckets=_SECONDS,
)
REPLICAS = Gauge("orchestrator_replicas_ready", "Engines that can take requests.")
TOKEN_USAGE = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of a request to a model, input and output apart; ended early ones included.",
    ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_response_model", "gen_ai_token_type"],
    buckets=tuple(4**power for power in range(14)),
)

_REASONS = {
    REFUSED_AT_ADMISSION: "limit",
    ErrorKind.OVERLOADED.value: "overloaded",
    ErrorKind.UNAVAILABLE.value: "no_engine",
}


def observe(method: str, outcome: str, seconds: float, active: ActiveRequest | None) -> None:
    """Counts a request that ended; `active` is None if it was not admitted."""
    labelled(REQUESTS, method, outcome).inc()
    if outcome in _REASONS and not (active and active.first_token_seen):
        labelled(REFUSED, method, _REASONS[outcome]).inc()
    if active is None:
        return
    labelled(E2E_LATENCY, method).observe(seconds, exemplar())
    if active.prompt_tokens:
        labels = (active.operation, semconv.PROVIDER, active.model)
        labelled(TOKEN_USAGE, *labels, "input").observe(active.prompt_tokens, exemplar())
        labelled(TOKEN_USAGE, *labels, "output").observe(active.completion_tokens, exemplar())
