"""Prometheus metrics of the orchestrator."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

NUM_REQUESTS_RUNNING = Gauge(
    "orchestrator_num_requests_running", "Requests that are being worked on."
)
REQUESTS = Counter(
    "orchestrator_requests_total", "Requests that ended, by how.", ["method", "outcome"]
)
REFUSED = Counter("orchestrator_refused_total", "Requests refused at admission.", ["method"])
FAILOVERS = Counter(
    "orchestrator_failovers_total", "Streams that were continued on another replica."
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
    "Time to find documents, by outcome: found, empty, timeout, failed.",
    ["outcome"],
    buckets=_SECONDS,
)
REPLICAS = Gauge("orchestrator_replicas_ready", "Engines that can take requests.")
