"""The dashboard "Weir overview": objectives, user-visible latency, each service's RED metrics."""

from __future__ import annotations

from scripts.dashboards.panels import (
    Item,
    Json,
    build,
    heatmap,
    row,
    selection,
    stat,
    timeseries,
)
from scripts.dashboards.queries import Query, mean, quantile, quantiles, rate, total
from scripts.dashboards.slo import slo_row

_TTFT = "gen_ai_server_time_to_first_token_seconds"
_DURATION = "gen_ai_server_request_duration_seconds"
_HTTP = "gateway_http_requests_total"
_RPC = "mesh_rpc_server_duration_seconds"
_FAULTS = 'code=~"UNKNOWN|DEADLINE_EXCEEDED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"'
"""Statuses that are a fault of the server, by OpenTelemetry's conventions for gRPC."""

_MODEL = "{{gen_ai_response_model}}"
_NO_MODEL = "Of all models: the metric has no model."


def overview() -> Json:
    """The dashboard to open first."""
    return build(
        "weir-overview",
        "Weir overview",
        "Objectives, user-visible latency, and the rate, errors and duration (RED) of each "
        "service.",
        selection(),
        [
            *_now(),
            *slo_row(),
            *_latency(),
            *_gateway(),
            *_services(),
            *_load(),
            *_engines(),
        ],
    )


def _now() -> list[Item]:
    failed = rate(_HTTP, "", 'status=~"5.."')
    return [
        stat(
            "Requests",
            f"Answered HTTP requests. {_NO_MODEL}",
            "reqps",
            Query(rate(_HTTP)),
        ),
        stat(
            "Failed",
            "Share of HTTP requests with a status of 500 or more. Refusals (429), invalid requests "
            "(4xx) and cancellations (499) are not failures.",
            "percentunit",
            Query(f"({failed} or 0 * {rate(_HTTP)}) / {rate(_HTTP)}"),
            limit=0.01,
        ),
        stat(
            "Time to first token, p95",
            "From the arrival at the gateway to the first text of a stream, all waits included.",
            "s",
            Query(quantile(0.95, _TTFT)),
            limit=2.5,
        ),
        stat(
            "Running requests",
            f"HTTP requests in progress, streams included. {_NO_MODEL}",
            "short",
            Query(total("gateway_num_requests_running")),
        ),
        stat(
            "Tokens per second",
            "Generated tokens of all engines.",
            "short",
            Query(rate("vllm:generation_tokens_total")),
        ),
        stat(
            "Engines ready",
            "Of the orchestrator that has the fewest. Without one all requests are refused.",
            "short",
            Query(f"min({total('orchestrator_replicas_ready', 'pod, instance')})"),
            least=1,
        ),
    ]


def _latency() -> list[Item]:
    return [
        row("Latency"),
        timeseries(
            "Time to first token",
            "From the arrival of a request at the gateway, queue times included. A dot is one "
            "request; click it to open its trace.",
            "s",
            *quantiles(_TTFT),
            limit=2.5,
        ),
        timeseries(
            "Inter-token latency",
            "Time between two tokens of a sequence, measured in the engine.",
            "s",
            *quantiles("vllm:inter_token_latency_seconds"),
            limit=0.2,
        ),
        timeseries(
            "Duration",
            "From the arrival of a request at the gateway to the end of its response.",
            "s",
            *quantiles(_DURATION),
        ),
        _first_token_stages(),
        heatmap(
            "Time to first token, distribution",
            "Number of streams by their time to first token. A dot is one request; click it to "
            "open its trace.",
            _TTFT,
            w=6,
        ),
        timeseries(
            "Time to first token by operation, p95",
            "Searches also retrieve documents before they generate.",
            "s",
            Query(
                quantile(0.95, _TTFT, "gen_ai_operation_name, gen_ai_response_model"),
                f"{{{{gen_ai_operation_name}}}}, {_MODEL}",
            ),
            limit=2.5,
            w=6,
        ),
    ]


def _first_token_stages() -> Item:
    """The mean time to first token as a sum of stages."""
    retrieval = (
        f"{rate('orchestrator_retrieval_seconds_sum')}\n"
        f"/ {rate('orchestrator_time_to_first_token_seconds_count')}"
    )
    stages = {
        "retrieval": retrieval,
        "encoding": mean("tokenizer_encode_seconds"),
        "queue": mean("vllm:request_queue_time_seconds"),
        "prefill": mean("vllm:request_prefill_time_seconds"),
    }
    known = " + ".join(f"({each} or vector(0))" for each in stages.values())
    rest = f"clamp_min({mean(_TTFT)} - ({known}), 0)"
    return timeseries(
        "Where the first token's time goes",
        "Mean times, stacked. Retrieval is spread over all requests, of which only searches have "
        "one. The rest is what remains of the mean time to first token: admission, choice of the "
        "replica, text held back, and the network. Retrieval and encoding are of all models.",
        "s",
        *(Query(expression, name) for name, expression in stages.items()),
        Query(rest, "rest"),
        stacked=True,
        w=12,
    )


def _gateway() -> list[Item]:
    return [
        row("Rate, errors, duration"),
        timeseries(
            "Gateway: requests",
            f"Answered HTTP requests by route and status; 499: the client closed the connection. "
            f"{_NO_MODEL}",
            "reqps",
            Query(rate(_HTTP, "route, status"), "{{route}}, {{status}}"),
        ),
        timeseries(
            "Gateway: errors by kind",
            "Failed requests by kind of error (docs/errors.md), refusals and invalid requests "
            f"included. {_NO_MODEL}",
            "reqps",
            Query(rate("gateway_errors_total", "kind"), "{{kind}}"),
        ),
        timeseries(
            "Gateway: duration, p95",
            f"From arrival to the end of the response, streams included. {_NO_MODEL}",
            "s",
            Query(quantile(0.95, "gateway_http_request_duration_seconds", "route"), "{{route}}"),
        ),
        timeseries(
            "Outcomes by operation",
            "Requests to a model by outcome, from the gateway's view.",
            "reqps",
            Query(
                rate(
                    f"{_DURATION}_count",
                    "gen_ai_operation_name, gen_ai_response_model, error_type",
                ),
                f"{{{{gen_ai_operation_name}}}}, {_MODEL}: {{{{error_type}}}}",
            ),
            w=24,
        ),
    ]


def _services() -> list[Item]:
    by_method = "{{rpc_service}}/{{rpc_method}}"
    return [
        timeseries(
            "Services: calls",
            f"Ended RPCs by method. {_NO_MODEL}",
            "reqps",
            Query(rate(f"{_RPC}_count", "rpc_service, rpc_method"), by_method),
        ),
        timeseries(
            "Services: failed calls",
            "RPCs that ended with a fault of the server. Refused, invalid and cancelled calls are "
            f"not failures. {_NO_MODEL}",
            "reqps",
            Query(rate(f"{_RPC}_count", "rpc_service, code", _FAULTS), "{{rpc_service}}: {{code}}"),
        ),
        timeseries(
            "Services: duration, p95",
            f"From the arrival of an RPC to its end, streams included. {_NO_MODEL}",
            "s",
            Query(quantile(0.95, _RPC, "rpc_service, rpc_method"), by_method),
        ),
    ]


def _load() -> list[Item]:
    return [
        row("Load and capacity"),
        timeseries(
            "Running requests",
            "Requests in each service. The orchestrator refuses requests beyond its limit; "
            "sequences wait where an engine is full.",
            "short",
            Query(total("gateway_num_requests_running"), "gateway, requests"),
            Query(total("gateway_num_streams_active"), "gateway, streams"),
            Query(total("orchestrator_num_requests_running"), "orchestrator"),
            Query(total("orchestrator_num_requests_limit"), "orchestrator, limit"),
            Query(total("tokenizer_num_requests_running"), "tokenizer"),
            Query(total("vllm:num_requests_running", "model_name"), "running, {{model_name}}"),
            Query(total("vllm:num_requests_waiting", "model_name"), "waiting, {{model_name}}"),
        ),
        timeseries(
            "Refused requests",
            "Answered with 429 or 503 before any text: by the orchestrator with its reason, or "
            f"because a key has reached its limit. {_NO_MODEL}",
            "reqps",
            Query(rate("orchestrator_refused_total", "reason"), "orchestrator: {{reason}}"),
            Query(rate("gateway_key_refusals_total", "limit"), "key: {{limit}}"),
        ),
        timeseries(
            "Event loop lag, p99",
            "Delay of a timer. Every stream of the process is delayed as long.",
            "s",
            Query(quantile(0.99, "mesh_event_loop_lag_seconds", "component"), "{{component}}"),
            limit=0.25,
        ),
    ]


def _engines() -> list[Item]:
    hits = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
    return [
        timeseries(
            "KV cache in use",
            "Share of the blocks that running sequences hold, mean of the engines. Sequences are "
            "preempted when it is full.",
            "percentunit",
            Query(
                total("vllm:kv_cache_usage_perc", "model_name").replace("sum", "avg", 1),
                "{{model_name}}",
            ),
            limit=0.9,
        ),
        timeseries(
            "Tokens per second",
            "Tokens of prompts and generated tokens.",
            "short",
            Query(rate("vllm:prompt_tokens_total", "model_name"), "prompts, {{model_name}}"),
            Query(rate("vllm:generation_tokens_total", "model_name"), "generated, {{model_name}}"),
        ),
        timeseries(
            "Prefix cache hits",
            "Share of the prompts' tokens that were in the prefix cache.",
            "percentunit",
            Query(
                f"{rate(hits[0], 'model_name')}\n/ {rate(hits[1], 'model_name')}", "{{model_name}}"
            ),
        ),
    ]
