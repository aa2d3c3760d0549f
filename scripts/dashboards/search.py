"""The dashboard "Weir search": latency and outcomes of searches, retrieval and encoding."""

from __future__ import annotations

from scripts.dashboards.panels import (
    Json,
    Query,
    dashboard,
    data_source,
    quantile,
    quantiles,
    rate,
    row,
    timeseries,
    values_of,
)

_RETRIEVAL = "orchestrator_retrieval_seconds"
_METHOD = 'method=~"Summarize.*"'
_SEARCH = 'gen_ai_operation_name="search"'


def search() -> Json:
    """For operating the search index and tuning the answers."""
    return dashboard(
        "weir-search",
        "Weir search",
        "Searches, retrieval of documents, and encoding of prompts.",
        [
            data_source("prometheus", "prometheus"),
            values_of("namespace", "namespace", "mesh_build_info"),
        ],
        [*_searches(), *_retrieval(), *_prompts()],
    )


def _searches() -> list[Json]:
    return [
        row("Searches"),
        timeseries(
            "Searches",
            "reqps",
            Query(rate("orchestrator_requests_total", "outcome", _METHOD), "{{outcome}}"),
        ),
        timeseries(
            "Time to first token",
            "s",
            *quantiles("gen_ai_server_time_to_first_token_seconds", _SEARCH),
        ),
        timeseries("Duration", "s", *quantiles("gen_ai_server_request_duration_seconds", _SEARCH)),
    ]


def _retrieval() -> list[Json]:
    by_outcome = rate(f"{_RETRIEVAL}_count", "provider, outcome")
    all_outcomes = rate(f"{_RETRIEVAL}_count", "provider")
    return [
        row("Retrieval"),
        timeseries(
            "Outcomes",
            "percentunit",
            Query(
                f"{by_outcome}\n/ on (provider) group_left () {all_outcomes}",
                "{{provider}}: {{outcome}}",
            ),
        ),
        timeseries("Duration", "s", *quantiles(_RETRIEVAL)),
        timeseries(
            "Duration by provider, p95",
            "s",
            Query(quantile(0.95, _RETRIEVAL, "provider"), "{{provider}}"),
        ),
    ]


def _prompts() -> list[Json]:
    return [
        row("Prompts"),
        timeseries(
            "Encoding, p95",
            "s",
            Query(quantile(0.95, "tokenizer_encode_seconds", "input"), "{{input}}"),
        ),
        timeseries(
            "Tokens of a request, p95",
            "short",
            Query(
                quantile(0.95, "gen_ai_client_token_usage", "gen_ai_token_type"),
                "{{gen_ai_token_type}}, p95",
            ),
        ),
        timeseries(
            "Tokens encoded and decoded",
            "short",
            Query(rate("tokenizer_tokens_total", "operation"), "{{operation}}"),
        ),
    ]
