"""The dashboard "Weir trace": from a slow moment to one request and its trace."""

from __future__ import annotations

from scripts.dashboards.panels import (
    Item,
    Json,
    Panel,
    build,
    data_source,
    found_traces,
    heatmap,
    logs,
    row,
    selection,
    text,
    text_box,
    timeseries,
    trace,
    trace_metric,
)
from scripts.dashboards.queries import Query, quantile

NO_TRACE = "{ false }"
"""A TraceQL query that finds nothing: an empty id is an error for Tempo."""

_STAGES = (
    ("orchestrator_retrieval_seconds", "retrieval"),
    ("tokenizer_encode_seconds", "encode"),
    ("vllm:request_queue_time_seconds", "queue"),
    ("vllm:request_prefill_time_seconds", "prefill"),
    ("vllm:request_decode_time_seconds", "decode"),
)

_REQUESTS = (
    'resource.service.name = "gateway" && kind = server '
    '&& resource.k8s.namespace.name =~ "$namespace" && span.weir.model =~ "$model"'
)
"""The spans of the requests themselves, as the client saw them."""


def weir_trace() -> Json:
    """For finding out why one request was slow."""
    return build(
        "weir-trace",
        "Weir trace",
        "From a slow moment to one request, its trace and its log lines.",
        [
            *selection(),
            data_source("tempo", "tempo"),
            data_source("loki", "loki"),
            text_box("trace_id", "Trace id", NO_TRACE),
        ],
        [
            text(
                "Every response has its trace id in the header `x-trace-id`, and a search also in "
                "its last event: enter it above. Or click a dot below: each is one request, and "
                "opens its trace."
            ),
            *_from_metrics(),
            *_from_traces(),
            *_lists(),
            row("The request"),
            trace(
                "Trace of the request",
                "The spans of the trace with the id above. `{ false }` selects none.",
            ),
            # Closed, because Loki need not be installed.
            row("Log lines of the request", panels=[_log_lines()]),
        ],
    )


def _from_metrics() -> list[Item]:
    stages = [
        Query(quantile(0.95, metric), f"{name}, p95", exemplars=True) for metric, name in _STAGES
    ]
    return [
        heatmap(
            "Time to first token, with one dot per sampled request",
            "Number of streams by their time to first token. Click a dot to open its trace.",
            "gen_ai_server_time_to_first_token_seconds",
            w=12,
        ),
        timeseries(
            "Latency by stage, p95",
            "Where the time of a request goes. Retrieval and encoding are of all models.",
            "s",
            *stages,
            w=12,
        ),
    ]


def _from_traces() -> list[Item]:
    first_tokens = f"{{ {_REQUESTS} && span.weir.time_to_first_token_seconds > 0 }}"
    by = "by (span.weir.operation)"
    return [
        row("Computed from traces"),
        trace_metric(
            "Traced requests by outcome",
            "Requests a second whose trace is exported. All that failed or were slow are, but of "
            "the others only some: for rates of all requests see the overview.",
            "reqps",
            f"{{ {_REQUESTS} }} | rate() by (span.weir.outcome)",
            stacked=True,
        ),
        trace_metric(
            "Time to first token of traced requests",
            "p50 and p95 by operation. A dot is one request; click it to open its trace.",
            "s",
            f"{first_tokens} | quantile_over_time(span.weir.time_to_first_token_seconds, .5, .95) "
            + by,
        ),
    ]


def _lists() -> list[Item]:
    return [
        row("Requests"),
        found_traces(
            "Requests that failed",
            "With a status of 500 or more, before or after the first byte. Refusals (429), invalid "
            "requests (4xx) and cancellations are not failures.",
            f"{{ {_REQUESTS} && status = error }}",
        ),
        found_traces(
            "Requests that failed over",
            "Another engine continued them after one was lost; `weir.failover.causes` says why.",
            f'{{ {_REQUESTS} && span.weir.outcome = "failed_over" }}',
            w=12,
        ),
        found_traces(
            "Slow requests",
            "Longer than 10 s, or without a text for 2.5 s.",
            f"{{ {_REQUESTS} && (duration > 10s || span.weir.time_to_first_token_seconds > 2.5) }}",
            w=12,
        ),
    ]


def _log_lines() -> Panel:
    return logs(
        "Log lines of the request",
        "The lines of all services with the trace id above, if Loki is installed.",
        '{namespace=~"$namespace"} | json | trace_id = `$trace_id`',
    )
