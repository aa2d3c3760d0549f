"""Weir search: how documents are found, and how summaries come of them."""

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
    """For whoever looks after the index and the answers."""
    share = rate(f"{_RETRIEVAL}_count", "provider, outcome")
    whole = rate(f"{_RETRIEVAL}_count", "provider")
    return dashboard(
        "weir-search",
        "Weir search",
        "How documents are found, and how summaries come of them.",
        [
            data_source("prometheus", "prometheus"),
            values_of("namespace", "namespace", "mesh_build_info"),
        ],
        [
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
            timeseries(
                "Duration", "s", *quantiles("gen_ai_server_request_duration_seconds", _SEARCH)
            ),
            row("Retrieval"),
            timeseries(
                "What came of it",
                "percentunit",
                Query(
                    f"{share}\n/ on (provider) group_left () {whole}", "{{provider}}: {{outcome}}"
                ),
            ),
            timeseries("Time", "s", *quantiles(_RETRIEVAL)),
            timeseries(
                "Time by provider, p95",
                "s",
                Query(quantile(0.95, _RETRIEVAL, "provider"), "{{provider}}"),
            ),
            row("Prompt"),
            timeseries(
                "Encoding, p95",
                "s",
                Query(quantile(0.95, "tokenizer_encode_seconds", "input"), "{{input}}"),
            ),
            timeseries(
                "Tokens of a search",
                "short",
                *(
                    Query(
                        quantile(0.95, "gen_ai_client_token_usage", "gen_ai_token_type"),
                        "{{gen_ai_token_type}}, p95",
                    ),
                ),
            ),
            timeseries(
                "Tokens encoded and decoded",
                "short",
                Query(rate("tokenizer_tokens_total", "operation"), "{{operation}}"),
            ),
        ],
    )
