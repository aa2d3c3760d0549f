"""The dashboard "Weir overview": user-visible latency, and each service's RED metrics."""

from __future__ import annotations

from scripts.dashboards.panels import (
    SELECTED,
    Json,
    Query,
    dashboard,
    data_source,
    heatmap,
    quantile,
    quantiles,
    rate,
    row,
    stat,
    timeseries,
    values_of,
)

_TTFT = "gen_ai_server_time_to_first_token_seconds"
_DURATION = "gen_ai_server_request_duration_seconds"
_HTTP = "gateway_http_requests_total"
_RPC = "mesh_rpc_server_duration_seconds"
_ALL_HTTP = f"sum(rate({_HTTP}{{{SELECTED}}}[$__rate_interval]))"


def overview() -> Json:
    """The dashboard to open first."""
    failed = f'sum(rate({_HTTP}{{{SELECTED},status=~"5.."}}[$__rate_interval]))'
    now = [
        stat("Requests", "reqps", Query(_ALL_HTTP)),
        stat("Failed", "percentunit", Query(f"({failed} or 0 * {_ALL_HTTP}) / {_ALL_HTTP}")),
        stat("Time to first token, p95", "s", Query(quantile(0.95, _TTFT))),
        stat(
            "Running requests", "short", Query(f"sum(gateway_num_requests_running{{{SELECTED}}})")
        ),
        stat(
            "Tokens per second",
            "short",
            Query(f"sum(rate(vllm:generation_tokens_total{{{SELECTED}}}[$__rate_interval]))"),
        ),
        stat("Engines ready", "short", Query(f"min(orchestrator_replicas_ready{{{SELECTED}}})")),
    ]
    return dashboard(
        "weir-overview",
        "Weir overview",
        "User-visible latency, and the rate, errors and duration (RED) of each service.",
        [
            data_source("prometheus", "prometheus"),
            values_of("namespace", "namespace", "mesh_build_info"),
        ],
        [*now, *_latency(), *_gateway(), *_services(), *_load(), *_engines()],
    )


def _latency() -> list[Json]:
    return [
        row("Latency"),
        timeseries(
            "Time to first token",
            "s",
            *quantiles(_TTFT),
            description="From the arrival of a request at the gateway, queue times included. "
            "A dot is one request; click it to open its trace.",
        ),
        timeseries(
            "Inter-token latency",
            "s",
            *quantiles("vllm:inter_token_latency_seconds"),
            description="Measured in the engine.",
        ),
        timeseries("Duration", "s", *quantiles(_DURATION)),
        heatmap("Time to first token, distribution", _TTFT, w=12),
        timeseries(
            "Time to first token by operation, p95",
            "s",
            Query(quantile(0.95, _TTFT, "gen_ai_operation_name"), "{{gen_ai_operation_name}}"),
            w=12,
        ),
    ]


def _gateway() -> list[Json]:
    return [
        row("Rate, errors, duration"),
        timeseries(
            "Gateway: requests",
            "reqps",
            Query(rate(_HTTP, "route, status"), "{{route}} {{status}}"),
        ),
        timeseries(
            "Gateway: errors by kind",
            "reqps",
            Query(rate("gateway_errors_total", "kind"), "{{kind}}"),
        ),
        timeseries(
            "Gateway: duration, p95",
            "s",
            Query(quantile(0.95, "gateway_http_request_duration_seconds", "route"), "{{route}}"),
        ),
    ]


def _services() -> list[Json]:
    return [
        timeseries(
            "Services: calls",
            "reqps",
            Query(
                rate(f"{_RPC}_count", "rpc_service, rpc_method"), "{{rpc_service}}/{{rpc_method}}"
            ),
        ),
        timeseries(
            "Services: failed calls",
            "reqps",
            Query(
                rate(f"{_RPC}_count", "rpc_service, code", 'code!="OK"'),
                "{{rpc_service}} {{code}}",
            ),
        ),
        timeseries(
            "Services: duration, p95",
            "s",
            Query(
                quantile(0.95, _RPC, "rpc_service, rpc_method"), "{{rpc_service}}/{{rpc_method}}"
            ),
        ),
    ]


def _load() -> list[Json]:
    return [
        row("Load and capacity"),
        timeseries(
            "Running requests",
            "short",
            Query(f"sum(gateway_num_requests_running{{{SELECTED}}})", "gateway, requests"),
            Query(f"sum(gateway_num_streams_active{{{SELECTED}}})", "gateway, streams"),
            Query(f"sum(orchestrator_num_requests_running{{{SELECTED}}})", "orchestrator"),
            Query(f"sum(orchestrator_num_requests_limit{{{SELECTED}}})", "orchestrator, limit"),
            Query(f"sum(tokenizer_num_requests_running{{{SELECTED}}})", "tokenizer"),
            Query(f"sum(vllm:num_requests_running{{{SELECTED}}})", "engines, running"),
            Query(f"sum(vllm:num_requests_waiting{{{SELECTED}}})", "engines, waiting"),
        ),
        timeseries(
            "Refused requests",
            "reqps",
            Query(rate("orchestrator_refused_total", "reason"), "{{reason}}"),
            Query(rate("gateway_key_refusals_total", "limit"), "key: {{limit}}"),
        ),
    ]


def _engines() -> list[Json]:
    return [
        timeseries(
            "KV cache in use",
            "percentunit",
            Query(
                f"avg by (model_name) (vllm:kv_cache_usage_perc{{{SELECTED}}})", "{{model_name}}"
            ),
        ),
        timeseries(
            "Tokens per second",
            "short",
            Query(rate("orchestrator_prompt_tokens_total", "namespace"), "prompts"),
            Query(rate("vllm:generation_tokens_total", "model_name"), "generated, {{model_name}}"),
        ),
        timeseries(
            "Prefix cache hits",
            "percentunit",
            Query(
                f"{rate('vllm:prefix_cache_hits_total', 'model_name')}\n"
                f"/ {rate('vllm:prefix_cache_queries_total', 'model_name')}",
                "{{model_name}}",
            ),
        ),
        timeseries(
            "Event loop lag, p99",
            "s",
            Query(quantile(0.99, "mesh_event_loop_lag_seconds", "component"), "{{component}}"),
        ),
    ]
