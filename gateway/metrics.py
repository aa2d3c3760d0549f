"""What Prometheus is told of the gateway."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "gateway_http_requests_total",
    "Requests that ended, by route, method and status; 499: the client went away.",
    ["route", "method", "status"],
)
REQUEST_DURATION = Histogram(
    "gateway_http_request_duration_seconds",
    "Time from the arrival of a request to the end of its answer, streams included.",
    ["route", "method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
TIME_TO_FIRST_TOKEN = Histogram(
    "gateway_time_to_first_token_seconds",
    "Time from the arrival of a streamed request to its first text.",
    ["route"],
    buckets=(0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
STREAMS_ACTIVE = Gauge("gateway_num_streams_active", "Streams that are being sent.")
STREAMS_RESUMED = Counter(
    "gateway_streams_resumed_total",
    "Resumable streams whose client left, by outcome: resumed, gone (it came back too late), "
    "expired (it did not come back).",
    ["outcome"],
)
ERRORS = Counter(
    "gateway_errors_total",
    "Requests that failed, before or after the first byte, by ErrorKind.",
    ["kind"],
)
KEY_REFUSALS = Counter(
    "gateway_key_refusals_total",
    "Requests refused because their API key is at a limit, by limit.",
    ["limit"],
)
