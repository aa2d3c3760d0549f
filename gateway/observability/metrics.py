"""Prometheus metrics of the gateway."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from mesh.observability import semconv
from mesh.observability.metrics import exemplar, labelled

REQUESTS = Counter(
    "gateway_http_requests_total",
    "Finished requests by route, method and status; 499: the client disconnected.",
    ["route", "method", "status"],
)
REQUEST_DURATION = Histogram(
    "gateway_http_request_duration_seconds",
    "Seconds from the arrival of a request to the end of its response, streams included.",
    ["route", "method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
NUM_REQUESTS_RUNNING = Gauge(
    "gateway_num_requests_running", "Requests in progress, streams included."
)
STREAMS_ACTIVE = Gauge("gateway_num_streams_active", "Streams that are being sent.")
STREAMS_RESUMED = Counter(
    "gateway_streams_resumed_total",
    "Resumable streams whose client disconnected, by outcome: resumed, gone (it reconnected too "
    "late), expired (it did not reconnect).",
    ["outcome"],
)
ERRORS = Counter(
    "gateway_errors_total",
    "Failed requests by ErrorKind, before or after the first byte.",
    ["kind"],
)
GATEWAYS_CONNECTED = Gauge(
    "gateway_peers_connected",
    "Other gateways whose use of API keys counts against the keys' limits here.",
)
KEY_REFUSALS = Counter(
    "gateway_key_refusals_total",
    "Requests refused because their API key reached a limit, by limit.",
    ["limit"],
)

# Names and buckets of OpenTelemetry's GenAI conventions for servers: the clients' view of this
# server, all waits included. Only the gateway exports them: a sum over services would
# count a request twice.
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_response_model")
GEN_AI_REQUEST_DURATION = Histogram(
    "gen_ai_server_request_duration_seconds",
    "Seconds from the arrival of a GenAI request to the end of its response, if a model was chosen "
    "for it; error_type is empty on success.",
    [*_GEN_AI, "error_type"],
    buckets=(
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
        *(2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    ),
)
GEN_AI_TIME_TO_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "Seconds from the arrival of a streamed request to its first text, all waits included.",
    _GEN_AI,
    buckets=(
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
        *(0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    ),
)
GEN_AI_TIME_PER_OUTPUT_TOKEN = Histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "Mean seconds per token of a streamed response after its first text.",
    _GEN_AI,
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    **dict.fromkeys(("/v1/rerank", "/rerank", "/v2/rerank"), "rerank"),
    **dict.fromkeys(("/v1/score", "/score"), "score"),
    # A retrieval and a chat; the conventions have no operation for both.
    "/api/v1/search": "search",
}


def operation_of(route: str) -> str:
    """The operation on a model that requests of this route are; empty if they are none."""
    return _OPERATIONS.get(route, "")


def observe_first_token(route: str, model: str, seconds: float) -> None:
    """Record the time to the first text of a stream."""
    labels = (_OPERATIONS.get(route, "_OTHER"), semconv.PROVIDER, model)
    labelled(GEN_AI_TIME_TO_FIRST_TOKEN, *labels).observe(seconds, exemplar())


def observe_time_per_output_token(route: str, model: str, seconds: float) -> None:
    """Record the mean time per token of a stream that succeeded."""
    labels = (_OPERATIONS.get(route, "_OTHER"), semconv.PROVIDER, model)
    labelled(GEN_AI_TIME_PER_OUTPUT_TOKEN, *labels).observe(seconds, exemplar())


def observe_request(
    route: str, method: str, status: int, seconds: float, *, model: str, error: str
) -> None:
    """Record a finished request; `error` has few values and is empty on success."""
    labelled(REQUESTS, route, method, str(status)).inc(1, exemplar())
    labelled(REQUEST_DURATION, route, method).observe(seconds, exemplar())
    if route in _OPERATIONS and model:  # refusals before that are in the other metrics
        labels = (_OPERATIONS[route], semconv.PROVIDER, model, error)
        labelled(GEN_AI_REQUEST_DURATION, *labels).observe(seconds, exemplar())
