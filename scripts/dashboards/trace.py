"""The dashboard "Weir trace": from a slow moment to one request and its trace."""

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
    """For finding out why one request was slow."""
    stages = [Query(quantile(0.95, metric), f"{name}, p95", True) for metric, name in _STAGES]
    return dashboard(
        "weir-trace",
        "Weir trace",
        "From a slow moment to one request and its trace.",
        [
            data_source("prometheus", "prometheus"),
            data_source("tempo", "tempo"),
            values_of("namespace", "namespace", "mesh_build_info"),
            text_box("trace_id", "Trace id"),
        ],
        [
            text(
                "Every response has its trace id in the header `x-trace-id` and in its last event: "
                "enter it above. Or click a dot below: each is one request, and opens its trace."
            ),
            heatmap(
                "Time to first token, with one dot per sampled request",
                "gen_ai_server_time_to_first_token_seconds",
                w=12,
            ),
            timeseries("Latency by stage, p95", "s", *stages, w=12),
            found_traces(
                "Slow requests",
                '{ resource.service.name = "gateway" && kind = server && duration > 1s }',
            ),
            found_traces(
                "Failed requests", '{ resource.service.name = "gateway" && status = error }'
            ),
            traces("Trace of the request"),
        ],
    )
