"""Weir trace: from a slow second to the request that it was, and along its way."""

from __future__ import annotations

from scripts.dashboards.panels import (
    Json,
    Query,
    dashboard,
    data_source,
    found_traces,
    heatmap,
    quantile,
    text,
    text_box,
    timeseries,
    traces,
    values_of,
)

_STAGES = (
    ("orchestrator_retrieval_seconds", "retrieval"),
    ("tokenizer_encode_seconds", "encode"),
    ("vllm:request_queue_time_seconds", "queue"),
    ("vllm:request_prefill_time_seconds", "prefill"),
    ("vllm:request_decode_time_seconds", "decode"),
)


def trace() -> Json:
    """For whoever asks why one request was slow."""
    stages = [Query(quantile(0.95, metric), f"{name}, p95", True) for metric, name in _STAGES]
    return dashboard(
        "weir-trace",
        "Weir trace",
        "From a slow second to the request that it was, and along its way.",
        [
            data_source("prometheus", "prometheus"),
            data_source("tempo", "tempo"),
            values_of("namespace", "namespace", "mesh_build_info"),
            text_box("trace_id", "Trace id"),
        ],
        [
            text(
                "Every answer has its trace id in `x-trace-id` and in its last event; put it above."
                " Or click a dot below: it is one request, and opens its trace."
            ),
            heatmap(
                "Time to first token, request by request",
                "gen_ai_server_time_to_first_token_seconds",
                w=12,
            ),
            timeseries("Where requests spend their time", "s", *stages, w=12),
            found_traces(
                "Slow requests",
                '{ resource.service.name = "gateway" && kind = server && duration > 1s }',
            ),
            found_traces(
                "Requests that failed", '{ resource.service.name = "gateway" && status = error }'
            ),
            traces("The way of one request"),
        ],
    )
